"""`accelerate launch scripts/train_dreambooth_atoms.py --instance_data_dir DIR --instance_prompt
TEXT …`."""

from sdatoms.cli.main import train_main

if __name__ == "__main__":
    train_main()
