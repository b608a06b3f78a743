"""What Relent adds to Snakemake's executor for SLURM: what a job asks for, and jobs that an earlier workflow left."""
