"""The settings of LoRA adapters that requests choose."""

from pathlib import Path

from pydantic import BaseModel, Field


class AdapterSettings(BaseModel):
    """LoRA adapters."""

    lora: str | None = Field(
        None,
        description="LoRA adapters that requests can choose as their model: NAME=FOLDER, several times or separated by "
        "commas. Needs --device cpu. Default: none.",
    )
    lora_folder: Path | None = Field(
        None,
        description="Folder with folders of adapters, which can be loaded and unloaded over HTTP while the server "
        "runs, with API keys by those that have `adapters` in --api-key-file. Needs --device cpu. Default: none.",
    )
    max_lora_rank: int = Field(
        16,
        ge=1,
        le=1024,
        description="Memory for each adapter that is loaded over HTTP: that of this rank in all layers. The KV pool "
        "leaves room for 8 of them. Needs --lora-folder.",
    )
