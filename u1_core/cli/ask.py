"""`u1 ask`: ask about pictures, or just talk."""

import argparse
from pathlib import Path

from u1_core.cli.options import Report, add_model_options, open_pictures, open_session, stream_text
from u1_core.understand.ask import ask
from u1_core.understand.decode import TextSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("question", help="what to ask; `<image>` marks say where the pictures stand, if not in front")
    parser.add_argument("pictures", type=Path, nargs="*", help="pictures it is about")
    add_model_options(parser)
    parser.add_argument("--max-tokens", type=int, default=1024, help="most tokens of the answer (default 1024)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from tokens that hold this share (default 1)")
    parser.add_argument("--top-k", type=int, default=0, help="draw from this many tokens (default: all)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1, repeats are rarer (default 1)")
    parser.add_argument("--seed", type=int, default=42, help="seed of the draws (default 42)")


def run(args: argparse.Namespace) -> int:
    settings = TextSettings(
        args.temperature, args.top_p, args.top_k, args.repetition_penalty, args.seed, args.max_tokens
    )
    pictures = open_pictures(args.pictures)
    session = open_session(args)
    report, tell, answer = Report(args, session), stream_text(args.json), ""
    for piece in ask(session, args.question, pictures, settings=settings):
        answer += piece
        tell(piece)
    tell("\n")
    report.finish(question=args.question, pictures=list(map(str, args.pictures)), answer=answer.strip())
    return 0
