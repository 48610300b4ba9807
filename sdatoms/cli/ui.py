"""`sdatoms ui`: the Gradio app."""

from __future__ import annotations

import argparse
from pathlib import Path

from sdatoms.cli.base import FLAGS, add_base_flags

__all__ = ["add_ui", "run_ui"]

MODELS = ("captioner", "segmenter", "evaluator", "style_evaluator")
"""Further models of the app, by their flags."""


def add_ui(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen", action="store_true", help="serve on all addresses instead of this machine only"
    )
    parser.add_argument(
        "--port", type=int, default=7860, help="port (default: 7860; 0 picks a free one)"
    )
    parser.add_argument(
        "--auth",
        action="append",
        default=[],
        metavar="NAME:PASSWORD",
        help="ask for a password; may be given several times, or as @FILE with one a line",
    )
    parser.add_argument(
        "--share", action="store_true", help="open a public tunnel; refused without --auth"
    )
    parser.add_argument("--offline", action="store_true", help="no request leaves the machine")
    parser.add_argument(
        "--root-path",
        default="",
        metavar="PATH",
        help="where a reverse proxy serves the app: a path it strips, such as /atoms, or the whole "
        "public address",
    )
    parser.add_argument(
        "--mcp", action="store_true", help="serve the endpoints as Model Context Protocol tools too"
    )
    parser.add_argument(
        "--adapters-dir",
        default="outputs",
        help="folder searched for atom files (default: outputs)",
    )
    parser.add_argument(
        "--outputs-dir",
        default="outputs/app",
        help="where pictures are kept (default: outputs/app)",
    )
    parser.add_argument(
        "--models-dir",
        default=None,
        help="folder of further base models: pipeline folders and single safetensors files",
    )
    parser.add_argument(
        "--pictures-dir",
        action="append",
        default=[],
        help="folder of pictures, or of such folders, to train on; may be given several times",
    )
    parser.add_argument(
        "--max-side",
        type=int,
        default=2048,
        metavar="PX",
        help="the longest side of a picture that may be asked for (default: 2048)",
    )
    parser.add_argument(
        "--while-training",
        choices=("wait", "cpu", "share"),
        default="wait",
        help="while a training has the GPU, pictures wait, are generated on the processor, or "
        "share it (default: wait); the pipeline is moved off the GPU but for share",
    )
    parser.add_argument(
        "--captioner",
        default=None,
        metavar="NAME",
        help="captioning model of transformers, folder or hub id, that captions pictures to train "
        "on, such as Salesforce/blip-image-captioning-base",
    )
    parser.add_argument(
        "--segmenter",
        default=None,
        metavar="NAME",
        help="segmentation model that masks them, such as CIDAS/clipseg-rd64-refined",
    )
    parser.add_argument(
        "--evaluator",
        default=None,
        metavar="NAME",
        help="what measures the samples of trainings: clip, dinov2, or a CLIP model, folder or hub "
        "id (default: the bundled one, for the bundled base alone)",
    )
    parser.add_argument(
        "--style_evaluator",
        default=None,
        metavar="NAME",
        help="what measures their fidelity: dinov2, clip, or a vision model, folder or hub id",
    )
    add_base_flags(parser)


def run_ui(args: argparse.Namespace) -> None:
    """Start the Gradio app on 127.0.0.1."""
    from sdatoms_app.app import serve

    serve(
        base=args.pretrained_model_name_or_path,
        opening={flag: getattr(args, flag) for flag in FLAGS},
        adapters_dir=Path(args.adapters_dir),
        outputs_dir=Path(args.outputs_dir),
        models_dir=Path(args.models_dir) if args.models_dir else None,
        pictures_dirs=[Path(folder) for folder in args.pictures_dir],
        host="0.0.0.0" if args.listen else "127.0.0.1",
        port=args.port,
        auth=args.auth,
        share=args.share,
        offline=args.offline,
        mcp=args.mcp,
        root_path=args.root_path,
        max_side=args.max_side,
        while_training=args.while_training,
        labellers={name: getattr(args, name) for name in MODELS if getattr(args, name)},
    )
