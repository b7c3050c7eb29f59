"""`rlaif serve`: a model behind HTTP."""

from __future__ import annotations

from pathlib import Path

import click

from rlaif.cli.options import FILE


@click.group()
def serve() -> None:
    """Serve a model over HTTP."""


@serve.command()
@click.argument("model", type=FILE)
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=5000,
    help="Port to listen on; 0 picks a free one.",
)
@click.option("--dtype", default="auto", help="auto, float32 or bfloat16.")
def reward(model: Path, host: str, port: int, dtype: str) -> None:
    """Serve the reward model in the folder MODEL until Ctrl-C.

    POST /get_reward takes OpenRLHF's {"query": [texts]} or {"messages": [conversations]}; POST
    /classify is vLLM's, as verl asks; POST /v1/chat/completions answers a conversation with its
    reward; GET /health, /metrics, /v1/models.
    """
    from rlaif.config.models import ModelSpec
    from rlaif.core.errors import ConfigError
    from rlaif.core.yamlio import validate
    from rlaif.engines.build import refuse_no_reward_model, whole
    from rlaif.engines.local.reward import load
    from rlaif.web.reward_app import RewardServer
    from rlaif.web.reward_server import RewardService

    folder = whole(model)
    refuse_no_reward_model(folder)
    spec = validate(ModelSpec, {"path": str(model), "dtype": dtype}, {}, "rlaif serve reward")
    service = RewardService(load(spec, folder, model.name))
    try:
        server = RewardServer(service, host, port)
    except ConfigError:
        service.close()
        raise
    click.echo(f"serving {model} at http://{host}:{server.port}")
    try:
        server.serve_forever()
    finally:
        service.close()
