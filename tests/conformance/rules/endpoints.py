"""Endpoints and headers."""

from tests.conformance.target import Target


def models_are_listed(target: Target) -> None:
    """`/v1/models` lists the model in OpenAI's form."""
    listed = target.client.models.list().data
    assert target.model in {model.id for model in listed}
    assert all((model.object, type(model.created)) == ("model", int) for model in listed)


def a_model_is_shown(target: Target) -> None:
    """`/v1/models/{id}` shows the model; another is 404 model_not_found."""
    assert target.client.models.retrieve(target.model).id == target.model
    response = target.http.get("/v1/models/no-such-model")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def requests_have_ids(target: Target) -> None:
    """Every response has `x-request-id`; a client's harmless one comes back, another does not."""
    body = {"model": target.model, "prompt": "hi", "max_tokens": 1}
    response = target.post("/v1/completions", body)
    assert response.headers.get("x-request-id")
    for own, comes_back in (("abc-123_X", True), ("a b", False), ("x" * 65, False)):
        response = target.http.post("/v1/completions", json=body, headers={"x-request-id": own})
        assert (response.headers.get("x-request-id") == own) is comes_back, own


def health_is_reported(target: Target) -> None:
    """`/health` answers."""
    assert target.http.get("/health").status_code == 200
    assert target.http.get("/health/nothing").status_code != 200, "so does every path"


def unknown_paths_and_methods(target: Target) -> None:
    """An unknown path is 404 and a wrong method 405, each with an error object."""
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405)):
        response = target.http.request(method, path)
        assert response.status_code == status, response.status_code
        assert isinstance(response.json()["error"]["message"], str)


def keys_are_asked_for(target: Target) -> None:
    """Where there are keys, a wrong one and none are 401 invalid_api_key; health needs none."""
    if not target.has_key:
        return
    for headers in ({"authorization": "Bearer wrong"}, {"authorization": ""}):
        response = target.http.get("/v1/models", headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
    assert target.http.get("/health", headers={"authorization": ""}).status_code == 200
