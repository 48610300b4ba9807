"""What PEFT asks of its custom models, and which tests here ask it of atoms.

PEFT's names are those of `tests/test_custom_models.py` (classes TestPeftCustomModel,
TestMultipleActiveAdapters, TestRequiresGrad, TestLayerRepr, …) and of `tests/testing_common.py`
(`_test_…`), huggingface/peft at commit 5d602fdb of 2026-08-21. In PEFT's words, merging is baking a
file (`load_atoms`), unmerging is `clear`, disabling is strength 0, unloading is `eject`, several
active adapters are several files at their strengths.
"""

import ast
from pathlib import Path

STANDS_FOR = {
    # Merge, unmerge, safe merge.
    "test_merge_layers": [
        "test_laws::test_every_law_holds",
        "test_writer::test_a_fresh_base_with_the_file_is_the_injected_model",
        "test_other_libraries::test_a_baked_pipeline_is_saved_as_a_plain_one",
    ],
    "test_merge_layers_fp16": ["test_laws::test_every_law_holds"],
    "_test_merge_layers_nan": [
        "test_bad_input::test_a_file_changed_in_memory_is_not_believed_either",
        "test_bad_input::test_infinite_numbers_are_refused",
        "test_bad_input::test_changes_without_finite_weights_are_taken_back",
    ],
    "test_safe_merge": [
        "test_bad_input::test_changes_without_finite_weights_are_taken_back",
        "test_export::test_a_baked_directory_is_plain_diffusers",
    ],
    "test_glora_safe_merge_does_not_corrupt_base_layer_on_non_finite_adapter": [
        "test_bad_input::test_a_file_changed_in_memory_is_not_believed_either",
        "test_bad_input::test_changes_without_finite_weights_are_taken_back",
    ],
    "test_merge_layers_is_idempotent": [
        "test_life_cycle::test_strengths_switch_between_adapters",
        "test_life_cycle::test_strengths_are_linear_and_zero_is_the_base",
    ],
    "test_unmerge_after_sequential_merge_restores_base": [
        "test_life_cycle::test_a_thousand_cycles_leave_every_bit",
    ],
    # Disable.
    "test_disable_adapters": [
        "test_life_cycle::test_strengths_are_linear_and_zero_is_the_base",
        "test_laws::test_every_law_holds",
    ],
    "test_disable_adapters_with_merging": [
        "test_life_cycle::test_strengths_are_linear_and_zero_is_the_base",
    ],
    "test_disable_adapters_exiting_context_restores_previous_state": [
        "test_life_cycle::test_strengths_are_linear_and_zero_is_the_base",
    ],
    # Several adapters.
    "test_load_multiple_adapters": ["test_life_cycle::test_every_set_on_a_module_is_the_same_set"],
    "test_active_adapter": ["test_life_cycle::test_strengths_switch_between_adapters"],
    "test_adapter_name": ["test_life_cycle::test_every_set_on_a_module_is_the_same_set"],
    "test_adapter_name_makes_no_difference": [
        "test_life_cycle::test_strengths_switch_between_adapters",
    ],
    "test_add_adapter_rejects_duplicate_name_without_mutation": [
        "test_life_cycle::test_failed_calls_change_nothing",
    ],
    "test_multiple_active_adapters_forward": [
        "test_life_cycle::test_strengths_switch_between_adapters",
    ],
    "test_multiple_active_adapters_merge_and_unmerge": [
        "test_life_cycle::test_a_thousand_cycles_leave_every_bit",
    ],
    "test_merge_layers_multi": ["test_life_cycle::test_strengths_switch_between_adapters"],
    "test_sequential_merge_matches_batch_merge": [
        "test_life_cycle::test_the_order_of_loading_changes_no_bit",
    ],
    "test_set_adapter_non_overlapping_modules": [
        "test_compose::test_all_configs_go_together_and_sums_are_summed_again",
    ],
    "test_delete_adapter": ["test_life_cycle::test_strengths_switch_between_adapters"],
    "test_delete_inactive_adapter": ["test_life_cycle::test_a_thousand_cycles_leave_every_bit"],
    "test_delete_unknown_adapter_raises": ["test_life_cycle::test_failed_calls_change_nothing"],
    "test_delete_adapter_with_multiple_adapters_works": [
        "test_life_cycle::test_the_order_of_loading_changes_no_bit",
    ],
    "test_delete_adapter_properly_cleans_up_after_itself": [
        "test_life_cycle::test_a_thousand_cycles_leave_every_bit",
    ],
    "_test_weighted_combination_of_adapters": [
        "test_compose::test_a_sum_bakes_what_its_files_bake_together",
        "test_compose::test_any_two_configs_go_together",
    ],
    "test_add_weighted_adapter_cat_with_rank_pattern": [
        "test_compose::test_any_two_configs_go_together",
    ],
    "test_add_weighted_adapter_negative_weight_negates_adapter": [
        "test_life_cycle::test_strengths_are_linear_and_zero_is_the_base",
    ],
    "test_add_weighted_adapter_subtraction_with_negative_weights": [
        "test_compose::test_all_configs_go_together_and_sums_are_summed_again",
    ],
    # Save and load.
    "test_save_load_roundtrip": ["test_laws::test_every_law_holds"],
    "test_parameters_after_loading_model": [
        "test_writer::test_a_fresh_base_with_the_file_is_the_injected_model",
        "test_inject::test_state_dict_round_trip_and_refusals",
    ],
    "test_save_pretrained": ["test_writer::test_keys_are_module_paths_with_the_agreed_tensors"],
    "test_save_pretrained_pickle": [
        "test_wrapped::test_an_injected_model_is_saved_and_read_by_torch",
        "test_reader::test_bad_files_are_refused_in_one_line_and_the_model_stays",
    ],
    "test_inference_safetensors": [
        "test_writer::test_a_fresh_base_with_the_file_is_the_injected_model",
    ],
    "test_from_pretrained_config_construction": [
        "test_config::test_a_config_from_a_file_asks_for_the_same_layers",
    ],
    "test_load_model_low_cpu_mem_usage": [
        "test_inject::test_meta_models_are_refused",
        "test_plan::test_weights_on_the_meta_device_are_refused",
    ],
    "test_existing_model_card": ["test_report::test_the_card_holds_the_runs_numbers"],
    # Training.
    "test_training_custom_models": ["test_laws::test_every_law_holds"],
    "test_only_params_are_updated": [
        "test_laws::test_every_law_holds",
        "test_open::test_one_step_trains_atoms_and_nothing_else",
    ],
    "_test_training_gradient_checkpointing": [
        "test_wrapped::test_gradient_checkpointing_changes_no_gradient",
    ],
    "test_set_requires_grad": [
        "test_inject::test_only_atoms_require_grad_and_each_gets_one",
        "test_inject::test_train_atoms_thaws_atoms_that_others_froze",
        "test_inject::test_eject_brings_everything_back",
    ],
    "test_loading_model_requires_grad_set_correctly": [
        "test_life_cycle::test_loading_leaves_parameters_their_objects_flags_and_modes",
    ],
    "test_requires_grad_lora_conv2d": ["test_laws::test_every_law_holds"],
    "test_requires_grad_lora_emb_conv1d": ["test_laws::test_every_law_holds"],
    "test_mha_gradients_set_correctly": [
        "test_attention::test_a_gradient_reaches_the_atoms_of_every_projection",
    ],
    # Dtypes.
    "test_forward_output_finite": ["test_laws::test_every_law_holds"],
    "test_forward_float16": [
        "test_atom_layers::test_autocast_rounds_the_sum_and_not_the_delta",
        "test_laws::test_every_law_holds",
    ],
    "test_forward_bfloat16": [
        "test_atom_layers::test_autocast_rounds_the_sum_and_not_the_delta",
        "test_wrapped::test_autocast_in_bfloat16_trains_float32_atoms",
    ],
    "test_forward_float16_no_autocast": ["test_laws::test_every_law_holds"],
    "test_forward_bfloat16_no_autocast": ["test_laws::test_every_law_holds"],
    "test_adapter_dtype_autocast": [
        "test_inject::test_casting_the_model_leaves_atoms_in_float32",
        "test_wrapped::test_the_default_dtype_is_not_the_atoms_dtype",
        "test_wrapped::test_atoms_cast_to_half_precision_do_not_train",
    ],
    # What the model is, before and after.
    "test_get_base_model_state_dict": [
        "test_laws::test_every_law_holds",
        "test_adopt::test_an_atom_layer_shares_all_that_the_base_has",
    ],
    "test_attributes_parametrized": ["test_targets::test_default_targets"],
    "test_in_features_out_features_exposed": [
        "test_adopt::test_an_atom_layer_shares_all_that_the_base_has",
    ],
    "test_weight_bias_attributes": ["test_adopt::test_an_atom_layer_shares_all_that_the_base_has"],
    "_test_unload_adapter": ["test_inject::test_eject_brings_everything_back"],
    "test_unload_adapter_multihead_attention": [
        "test_attention::test_the_module_is_replaced_as_a_whole_and_comes_back",
        "test_attention::test_a_file_bakes_into_the_parameters_and_clears_to_the_bit",
    ],
    "test_repr_lora_linear": ["test_inject::test_the_representation_names_views_and_atoms"],
    "test_repr_lora_conv2d": [
        "test_open::test_the_representation_tells_which_layers_carry_which_atoms",
    ],
    "test_default_target_modules_not_set_raises": ["test_targets::test_default_targets"],
    "test_default_target_modules_list_of_str": [
        "test_open::test_classifiers_tune_all_layers_but_the_head",
    ],
    "test_custom_lora_layer_issues_warning": [
        "test_adopt::test_layers_of_other_libraries_are_left_out_by_name",
    ],
    "test_gralora_and_hybrid_gralora_parameter_count": [
        "test_laws::test_every_law_holds",
        "test_budget::test_counts_are_the_formulas",
    ],
    "_test_lora_conversion": [
        "test_export::test_a_lora_is_the_best_of_its_rank_and_says_what_it_loses",
    ],
    "_test_peft_model_device_map": ["test_deltas::test_atoms_follow_to_another_device"],
}
"""PEFT's test → the tests here that stand for it, as `module::name`."""

NOT_OFFERED = {
    "modules_to_save, trained embeddings and biases": [
        "test_set_adapter_non_overlapping_modules_to_save",
        "test_multiple_active_adapters_with_same_modules_to_save_raises",
        "test_save_pretrained_targeting_lora_to_embedding_layer",
        "test_adding_multiple_adapters_with_bias_raises",
        "test_disable_adapter_with_bias_warns",
    ],
    "another adapter for each row of a batch": ["test_mixed_adapter_batches_mlp"],
    "several trained adapters in one model": [
        "test_requires_grad_lora_different_targets",
        "test_delete_merged_adapter_raises_without_mutation",
    ],
    "layers of one's own for custom modules": ["test_custom_lora_layer_used"],
    "FSDP": ["test_save_load_roundtrip_fsdp_wrapped"],
    "text generation and prompts": ["_test_generate", "_test_training_prompt_learning_tasks"],
}
"""What atoms do not offer → PEFT's tests of it, the first of each family."""


def test_every_test_that_stands_for_one_of_pefts_is_there():
    here = {
        f"{path.stem}::{node.name}"
        for path in Path(__file__).parents[1].rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert all(STANDS_FOR.values())
    assert not {name for names in STANDS_FOR.values() for name in names} - here


def test_no_behaviour_is_both_offered_and_not():
    left_out = {name for names in NOT_OFFERED.values() for name in names}
    assert not left_out & set(STANDS_FOR)
