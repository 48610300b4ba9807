"""What users of other trainers ask for most, and the test here that each has become."""

import ast
from pathlib import Path

import pytest

PAINS = {
    "1 resuming loses or ignores training": (
        "training/test_checkpoints.test_resumed_run_equals_the_uninterrupted_one_to_the_bit",
        "training/test_failures.test_a_killed_save_leaves_the_last_checkpoint",
    ),
    "2 out of memory, samples as the spike": (
        "training/test_failures.test_full_memory_saves_the_last_whole_step",
        "training/test_trainer.test_encoders_are_freed_when_nothing_is_painted",
        "training/test_samples.test_samples_hold_no_more_pictures_at_once_than_a_training_batch",
        "training/test_presets.test_costs_are_measured_for_the_presets_as_they_are",
    ),
    "3 fp16: unscaled gradients, NaN": (
        "training/test_trainer.test_atoms_stay_in_float32_under_autocast",
        "training/test_failures.test_loss_that_is_not_finite_stops_by_name",
    ),
    "4 trained well, loads as nothing": (
        "adapters/test_plan.test_keys_that_fit_no_module_or_only_some_are_refused",
        "training/test_trainer.test_atoms_that_no_gradient_reaches_stop_the_first_step",
    ),
    "5 samples in training differ from later ones": (
        "training/test_samples.test_sample_in_training_equals_the_picture_from_the_saved_file",
    ),
    "6 file formats of other tools": (
        "adapters/test_export.test_a_pipeline_loads_the_lora_and_gives_the_sum",
        "adapters/test_export.test_kohya_names_go_through_diffusers_converter",
        "laws/test_comfyui.test_the_node_patches_what_load_atoms_bakes",
    ),
    "7 several processes break with a text encoder": (
        "training/test_processes.test_two_gloo_processes_give_the_one_process_result",
    ),
    "8 aspect-ratio buckets, class pictures too": (
        "training/test_encodings.test_buckets_keep_proportions_and_train_on_every_size",
        "training/test_buckets.test_a_picture_covers_its_bucket_in_its_own_proportions",
        "laws/test_photographs.test_photographs_train_under_buckets_with_mirrored_copies_and_a_class",
    ),
    "9 overfitting, drift of the language": (
        "training/test_trainer.test_prediction_of_the_base_is_kept_without_class_pictures",
        "training/test_samples.test_drift_is_how_far_unrelated_pictures_moved_from_the_base",
    ),
    "10 when to stop": (
        "training/test_samples.test_best_step_is_kept_and_training_stops_when_it_does_not_improve",
    ),
    "11 averages of the adapter": (
        "training/test_loop.test_averages_are_what_samples_and_the_file_hold",
    ),
    "12 repeatability": ("training/test_loop.test_the_seed_decides_every_bit",),
    "13 merging and taking out again": (
        "laws/test_life_cycle.test_a_thousand_cycles_leave_every_bit",
        "layers/test_atom_layers.test_files_of_any_convolution_bake_and_clear",
    ),
    "14 swapping without compiling again": (
        "laws/test_life_cycle.test_swapping_adapters_compiles_nothing_anew",
    ),
}


@pytest.mark.parametrize("pain", PAINS)
def test_every_pain_has_its_tests(pain):
    for place in PAINS[pain]:
        module, name = place.split(".")
        tree = ast.parse((Path(__file__).parents[1] / f"{module}.py").read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
