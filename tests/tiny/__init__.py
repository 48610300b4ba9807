"""All that tests build on: models of a few thousand weights, atoms in them, pictures, runs.

From configs and seeds alone: no network, nothing large, seconds on a CPU. The fixtures of
`tests/conftest.py` hand most of it out.

| wanted | module | what it has |
|---|---|---|
| a pipeline (sd, sd2, sdxl; any prediction, size and dtype), its parts | `pipelines` | `build_pipeline`, `save_pipeline`, `save_base`, `build_unet`, `build_tokenizer` |
| an evaluator | `evaluator` | `save_tiny_evaluator` |
| a convolutional net, attention, one layer of every flavour | `modules` | `ConvNet`, `Attention`, `make_base` |
| a small relative of every known model | `models` | `build_small`, `make_inputs`, `take_step` |
| a small classifier | `classifiers` | `save_resnet` |
| atoms, tuned; the files of every form; damaged files | `atoms` | `VARIANTS`, `inject_one`, `perturb`, `build_samples`, `read_raw` |
| pictures | `pictures` | `draw_noise`, `save_pictures`, `draw` |
| a training and what it left behind | `runs` | `make_config`, `read_metrics`, `read_tensors` |
| a bound on waiting, on memory, on disk | `limits` | `HANG`, `WAIT`, `wait_for`, `little_memory`, `little_room` |
"""  # noqa: E501
