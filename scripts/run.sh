#!/usr/bin/env bash
# The paper's four methods on one task, beside a linear probe and full fine-tuning: pre-train a small
# ResNet on one vendor's emoji, transfer it to another vendor's, write a table and a plot.
# Usage: bash scripts/run.sh [flags of finetune_classifier.py]; needs npm for the pictures.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
out=outputs/classifier
if ! command -v npm >/dev/null; then
    echo "run.sh fetches emoji with npm, which was not found" >&2
    exit 2
fi
if [ ! -f $out/resnet20.safetensors ]; then
    python scripts/pretrain_classifier.py --output $out/resnet20.safetensors
fi
runs=()
for method in linear_probe atoms overcomplete coefficients full full_finetune; do
    case $method in
        linear_probe) rates="3e-2 1e-1 3e-1" ;;
        full_finetune) rates="1e-3 3e-3" ;;
        *) rates="1e-2 3e-2" ;;
    esac
    python scripts/finetune_classifier.py --model $out/resnet20.safetensors \
        --data emoji-category --vendors twemoji --method $method --num_train 500 --epochs 12 \
        --learning_rate $rates --output_dir $out/$method "$@" >/dev/null
    runs+=("$out/$method")
done
python scripts/compare_classifiers.py "${runs[@]}" --output_dir $out
echo "wrote $out/comparison.md, $out/comparison.png and a confusion.png a method"
