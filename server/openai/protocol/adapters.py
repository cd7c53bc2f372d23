"""The requests of POST /v1/load_lora_adapter and /v1/unload_lora_adapter, in the form of vLLM."""

from typing import ClassVar

from pydantic import Field

from caravan.server.openai.protocol.known_field import KnownFields, refused
from caravan.server.openai.protocol.strict_model import StrictModel


class LoadAdapterRequest(StrictModel):
    """The body of POST /v1/load_lora_adapter."""

    known_fields: ClassVar[KnownFields] = {
        "load_inplace": refused("vLLM", harmless=(False,)),
        "pinned": refused("SGLang", harmless=(False,)),
    }

    lora_name: str = Field(description="A new name, by which requests choose the adapter as their model.")
    lora_path: str = Field(description="Folder of the adapter, by its path from that of --lora-folder, or absolute.")


class UnloadAdapterRequest(StrictModel):
    """The body of POST /v1/unload_lora_adapter."""

    known_fields: ClassVar[KnownFields] = {"lora_int_id": refused("vLLM")}

    lora_name: str = Field(description="The name of an adapter.")
