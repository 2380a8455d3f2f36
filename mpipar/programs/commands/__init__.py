"""`mpipar run`: a list of shell commands over the allocation.

listing      the command file                        rank 0
program      the run from start to end               rank 0
dispatch     which command is next, which again      rank 0
book         logs and journal; what was done before  rank 0
report       the table at the end                    rank 0
stage        one command, one try                    worker
supervision  a shepherd as its worker sees it        worker
environment  what a command finds in its environment worker
shepherd     starts a command, watches it, ends it   a small process beside each worker
"""
