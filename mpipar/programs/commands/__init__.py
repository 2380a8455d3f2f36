"""`mpipar run`: a list of shell commands over the allocation.

listing              the command file                          rank 0
run                  the run from start to end                 rank 0
dispatch             which command is next, which again        rank 0
try_log              logs and journal; what was done before    rank 0
report               the table at the end                      rank 0
command_stage        one try of one command                    worker
command_environment  the environment variables of a command    worker
supervisor_client    the worker's side of a supervisor         worker
supervisor_main      starts, watches and ends one command      a small process beside each worker
"""
