"""The responses of GET /v1/models in Anthropic's form."""

from datetime import datetime
from typing import Literal

from caravan.server.openai.protocol.response_model import ResponseModel


class MessageModel(ResponseModel, kw_only=True):
    """A name of a served model."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: datetime  # when the server started
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int  # the prompt and the message together
    max_tokens: int  # the same


class MessageModelList(ResponseModel, kw_only=True):
    """A page of the names."""

    data: list[MessageModel]
    has_more: bool  # after this page, or before it if `before_id` is given
    first_id: str | None = None
    last_id: str | None = None
