"""What is computed: a program reads like sequential code on rank 0; its stages run on workers."""
