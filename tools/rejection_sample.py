"""Sample, keep what is right, train: torchrun --nproc-per-node N tools/rejection_sample.py +experiment=NAME [...]"""

from areal_mega.trainers.launch import launch


def run(options, topology, directory):
    # Imported here: Megatron must not be loaded before the device layer is set up.
    from areal_mega.trainers.rejection import run as train

    train(options, topology, directory)


if __name__ == "__main__":
    launch("rejection", run)
