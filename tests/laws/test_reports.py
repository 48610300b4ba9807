"""What people trip over: for each kind of fault where its laws over inputs made from lists are."""

import ast
from pathlib import Path

import pytest

KINDS = {
    "A resume does not look at what it resumes": (
        "reports/test_resume.test_every_changed_setting_is_named_or_refused",
        "reports/test_resume.test_other_pictures_are_refused_by_name",
        "reports/test_resume.test_a_refused_call_writes_nothing_and_an_accepted_one_says_what_changed",
    ),
    "B other tools' conventions are taken literally": (
        "reports/test_conventions.test_captions_are_read_under_every_name",
        "reports/test_conventions.test_masks_are_masks_under_every_name",
        "app/train/test_arrivals.test_every_trainers_mask_becomes_the_mask_of_its_picture",
        "app/train/test_arrivals.test_folders_are_sorted_as_their_names_say",
    ),
    "C texts and names are assumed to be clean UTF-8": (
        "reports/test_texts.test_captions_are_read_in_every_encoding_and_place",
        "reports/test_texts.test_all_that_settings_hold_comes_back_from_toml",
        "laws/test_consoles.test_commands_do_their_work_on_every_console",
    ),
    "D one prompt has two readings": (
        "reports/test_prompts.test_training_reads_prompts_as_painting_does",
    ),
    "E a stop is heard only between steps": (
        "reports/test_stopping.test_a_stop_is_heard_in_every_phase",
        "laws/test_consoles.test_a_stop_while_a_command_imports_is_said_in_a_line",
        "app/queue/test_worker.test_two_trainings_one_after_the_other",
    ),
    "F no owner, no lock": (
        "reports/test_owners.test_locks_of_dead_processes_are_taken_over",
        "reports/test_owners.test_folders_that_would_become_each_others_pictures_are_refused",
        "laws/test_threads.test_any_calls_from_threads_end_as_some_order_of_them_would",
    ),
    "G a layer is changed that nothing reads": (
        "reports/test_unread.test_joined_layers_take_no_atoms_until_they_are_apart",
        "reports/test_unread.test_nothing_is_changed_or_vouched_for_while_layers_are_joined",
        "reports/test_unread.test_blocks_of_a_model_that_has_none_are_refused",
        "layers/test_inject.test_layers_whose_weight_is_read_without_a_call_are_left_out",
    ),
    "H arguments are passed on unlooked-at": (
        "reports/test_arguments.test_other_seeds_are_refused_by_name",
        "reports/test_arguments.test_one_side_gives_the_other_and_odd_ones_are_refused",
        "reports/test_arguments.test_bases_of_other_families_are_refused_before_anything_is_done",
        "laws/test_coarse_weights.test_atoms_go_into_no_model_of_8_bits",
    ),
    "I surroundings": (
        "reports/test_surroundings.test_commands_do_their_work_in_every_environment",
        "reports/test_surroundings.test_folders_that_cannot_be_made_are_named",
        "app/test_surroundings.test_the_app_starts_and_paints_behind_every_kind_of_proxy",
        "app/test_surroundings.test_folders_that_cannot_be_written_to_are_named_in_one_sentence",
        "app/train/test_arrivals.test_a_phones_picture_is_taken_and_kept_smaller",
    ),
    "J files for other programs": (
        "adapters/test_names.test_diffusers_loses_what_is_said",
        "adapters/test_names.test_layers_that_a_program_skips_are_lost_whole",
        "adapters/test_names.test_a_baked_pipeline_has_the_names_that_older_readers_know",
        "laws/test_clients.test_older_diffusers_loses_what_is_said",
        "laws/test_comfyui.test_the_node_patches_what_load_atoms_bakes",
        "laws/test_peft_behaviours.test_every_test_that_stands_for_one_of_pefts_is_there",
        "layers/test_inject.test_the_state_of_an_injected_model_is_a_safetensors_file",
    ),
    "K wrong before it is asked": (
        "reports/test_no_models.test_files_that_are_no_models_are_refused",
        "reports/test_no_models.test_folders_that_are_no_models_are_refused",
        "app/studio/test_bases.test_files_that_are_no_models_are_not_listed",
        "diffusion/test_open.test_a_file_that_is_no_base_ends_in_one_sentence",
        "models/test_recognize.test_what_is_no_base_is_refused_by_name",
        "models/test_recognize.test_damaged_files_are_refused_in_one_line",
    ),
}
"""Kind → `tests/…` without its ending, and the name of a test there."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_laws(kind):
    for place in KINDS[kind]:
        module, name = place.split(".")
        folder = Path(__file__).parents[0 if module.startswith("reports/") else 1]
        tree = ast.parse((folder / f"{module}.py").read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
