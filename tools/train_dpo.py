"""Start DPO: torchrun --nproc-per-node N tools/train_dpo.py +experiment=NAME [option=value ...]"""

from areal_mega.trainers.launch import launch


def run(options, topology, directory):
    # Imported here: Megatron must not be loaded before the device layer is set up.
    from areal_mega.trainers.dpo import run as train

    train(options, topology, directory)


if __name__ == "__main__":
    launch("dpo", run)
