"""The routes over a tiny model: what they answer, and what they refuse and how."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from r1v_export.generation import Sampling
from r1v_export.runner.batching.batching_runner import BatchingRunner
from r1v_export.runner.batching.options import BatchingOptions
from r1v_export.runner.prompt_encoder import Request
from r1v_export.serve.app import create_app
from r1v_export.serve.settings import Limits, ServerSettings
from tests.serve.conftest import MODEL, data_url, serving

CHAT = "/v1/chat/completions"
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "What?"}], "max_tokens": 6, "temperature": 0}


def image_url(width: int = 40, height: int = 30, color: str = "red") -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def image_part(**size) -> dict:
    return {"type": "image_url", "image_url": {"url": image_url(**size)}}


def error_of(response) -> dict:
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def events(response) -> list[dict]:
    *lines, done = [line for line in response.text.split("\n\n") if line]
    assert done == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_an_answer_is_the_runner_s(client, runner):
    body = client.post(CHAT, json=QUESTION).json()
    alone = runner.answer(Request.ask("What?"), Sampling(max_new_tokens=6))
    message = body["choices"][0]["message"]
    assert (message["reasoning_content"] or "", message["content"]) == (alone.reasoning, alone.text)
    assert message["reasoning"] == message["reasoning_content"]
    assert body["usage"]["prompt_tokens"] == alone.prompt_tokens
    assert body["usage"]["completion_tokens"] == len(alone.token_ids)
    assert body["choices"][0]["finish_reason"] == "length"


def test_a_stream_brings_the_same_in_pieces_and_the_usage_on_request(client):
    whole = client.post(CHAT, json=QUESTION).json()
    streamed = events(client.post(CHAT, json={**QUESTION, "stream": True, "stream_options": {"include_usage": True}}))
    deltas = [event["choices"][0]["delta"] for event in streamed if event["choices"]]
    message = whole["choices"][0]["message"]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content") or "" for delta in deltas) == message["content"]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == (message["reasoning_content"] or "")
    # The second time the prompt is in the cache already, but for its last token.
    cached = {"prompt_tokens_details": {"cached_tokens": whole["usage"]["prompt_tokens"] - 1}}
    assert streamed[-1]["usage"] == {**whole["usage"], **cached}
    assert {event["id"] for event in streamed} == {streamed[0]["id"]}


def test_several_answers_differ_by_their_seeds_and_come_back_the_same(client):
    asked = {**QUESTION, "n": 3, "temperature": 1.5, "seed": 7}
    first, second = (client.post(CHAT, json=asked).json()["choices"] for _ in range(2))
    assert [choice["index"] for choice in first] == [0, 1, 2]
    assert first == second
    assert len({json.dumps(choice["message"]) for choice in first}) > 1


def test_an_error_sets_its_details_apart(client):
    message = client.post(CHAT, json={**QUESTION, "messages": [{"role": "user", "content": "x" * 5000}]}).json()[
        "error"
    ]
    assert re.match(
        r"The prompt is too long for this model\. where: .+; expected: .+; found: .+; fix: [^\n]+$",
        message["message"],
    )


def test_images_stand_where_their_messages_show_them(client, runner):
    parts = [
        {"type": "text", "text": "Left"},
        image_part(),
        {"type": "text", "text": "right"},
        image_part(color="blue"),
    ]
    first = {"role": "user", "content": parts}
    past = {"role": "assistant", "content": "Yes.", "reasoning_content": "because"}
    asked = {"messages": [first, past, {"role": "user", "content": [image_part(), {"type": "text", "text": "And?"}]}]}
    tokens = client.post("/tokenize", json=asked).json()["tokens"]
    image = runner.pipeline.image_token_id
    per_tile = runner.pipeline.tokens_per_tile
    assert tokens.count(image) == 3 * per_tile
    text = runner.tokenizer.decode([token for token in tokens if token != image])
    assert "Left\n" in text
    assert "\nright\n" in text
    assert "because" not in text  # R1V's template drops reasoning of past answers


def test_a_continuation_has_no_template(client, runner):
    tokens = client.post("/tokenize", json={"prompt": "Once"}).json()
    assert tokens["tokens"] == runner.tokenizer.encode_text("Once")
    body = client.post(
        "/v1/completions", json={"model": MODEL, "prompt": "Once", "max_tokens": 4, "temperature": 0}
    ).json()
    assert body["usage"]["prompt_tokens"] == tokens["count"]
    alone = runner.answer(Request.continuation("Once"), Sampling(max_new_tokens=4))
    assert body["choices"][0]["text"] == alone.text == runner.tokenizer.decode(alone.token_ids)


@pytest.mark.parametrize("prompt", ["", "\ud800", "a" * 10_000], ids=["empty", "surrogate", "beyond the context"])
def test_a_text_that_cannot_be_continued_is_refused_by_tokenize_as_by_completions(client, prompt):
    body = json.dumps({"model": MODEL, "prompt": prompt})  # Escapes the surrogate, which UTF-8 does not have.
    kind = {"Content-Type": "application/json"}
    responses = [client.post(route, content=body, headers=kind) for route in ("/tokenize", "/v1/completions")]
    assert [response.status_code for response in responses] == [400, 400]
    refusals = [error_of(response) for response in responses]
    assert refusals[0]["code"] == refusals[1]["code"] == "invalid_input"
    assert refusals[0]["message"] == refusals[1]["message"]


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "another"}, 404, "model_not_found"),
        ({"tools": []}, 400, "unknown_parameter"),
        ({"messages": []}, 400, "invalid_value"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, 400, "invalid_value"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "invalid_input"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "invalid_input"),
        ({"temperature": -1}, 400, "invalid_value"),
        ({"top_p": 0}, 400, "invalid_value"),
        ({"n": 1000}, 400, "invalid_value"),
        ({"stop": [""]}, 400, "invalid_input"),
        ({"max_tokens": 0}, 400, "invalid_value"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "invalid_input"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, "invalid_value"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_is_refused_in_the_api_s_shape(client, change, status, code, stream):
    response = client.post(CHAT, json={**QUESTION, **change, "stream": stream})
    assert response.status_code == status, response.text
    error = error_of(response)
    assert error["code"] == code
    assert error["type"] == "invalid_request_error"
    assert client.get("/ready").status_code == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": []}, "messages: expected at least 1 item, found []; send such a value."),
        ({"messages": None}, "messages: expected a list, found null; send such a value."),
        (
            {"messages": [{"role": "narrator", "content": "x"}]},
            "messages.0: expected 'role' as one of 'system', 'developer', 'user', 'assistant', found 'narrator'; "
            "send one of these.",
        ),
        ({"messages": [{"content": "x"}]}, "messages.0: 'role' is missing; add it."),
        ({"messages": [{"role": "user"}]}, "messages.0.content is missing; add it."),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "messages.0.content: expected a text or a list, found 5; send such a value.",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "messages.0.content.0: expected 'type' as one of 'text', 'image_url', found 'audio'; send one of these.",
        ),
        ({"max_tokens": 0}, "max_tokens: expected greater than 0, found 0; send such a value, or omit max_tokens."),
        (
            {"temperature": "hot"},
            "temperature: expected a number, found 'hot'; send such a value, or omit temperature.",
        ),
        ({"stop": ["a", 1]}, "stop.1: expected a text, found 1; send such a value, or omit stop."),
        ({"stop": 5}, "stop: expected a text or a list, found 5; send such a value, or omit stop."),
        ({"max_token": 5}, "Unknown parameter: max_token. It would have no effect: omit it; did you mean max_tokens?"),
        ({"tools": []}, "Unknown parameter: tools. It would have no effect: omit it."),
        (
            {"top_logprobs": 2},
            "The body: top_logprobs needs logprobs: true; add it, or omit top_logprobs.",
        ),
        ({"model": "another"}, f"The model 'another' does not exist here; send '{MODEL}'."),
    ],
)
def test_a_wrong_value_is_named_with_what_is_expected_and_what_to_send_instead(client, change, message):
    assert error_of(client.post(CHAT, json={**QUESTION, **change}))["message"] == message


def test_a_body_without_its_content_type_learns_which_header(client):
    """As `curl -d` sends it."""
    response = client.post(CHAT, content=json.dumps(QUESTION), headers={"Content-Type": "text/plain"})
    assert response.status_code == 400
    assert "Content-Type: application/json" in error_of(response)["message"]
    assert error_of(client.post(CHAT, json={"model": MODEL}))["message"] == "messages is missing; add it."
    assert error_of(client.post(CHAT))["message"] == "The body is empty; send one JSON object, in UTF-8."


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "http://127.0.0.1:9/x.png",
        "data:image/png;base64,AAAA",
        "data:image/png;base64,%%%",
        "ftp://host/x",
    ],
)
def test_an_image_that_cannot_be_used_is_a_client_s_error(client, url):
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    response = client.post(CHAT, json={**QUESTION, "messages": messages})
    assert response.status_code == 400
    assert "root:" not in response.text
    assert "fix: " in error_of(response)["message"]


def test_a_text_with_a_placeholder_and_an_image_is_refused(client):
    messages = [{"role": "user", "content": [image_part(), {"type": "text", "text": "an <image> tag"}]}]
    assert "<image>" in error_of(client.post(CHAT, json={**QUESTION, "messages": messages}))["message"]


def test_a_body_that_is_no_json_or_nests_deeply_is_refused(client):
    for body in (b"{", b"\xff", b"[" * 100_000, b"null"):
        response = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 400
        assert error_of(response)["code"] == ("invalid_value" if body == b"null" else "invalid_json")
        assert "one JSON object" in error_of(response)["message"] or body == b"null"


def test_a_path_or_method_that_is_not_there_learns_what_is(client):
    for response, status in (
        (client.get("/v1/nothing"), 404),
        (client.get(CHAT), 405),
        (client.post("/v2" + CHAT), 404),
    ):
        assert response.status_code == status
        asked = f"{response.request.method} {response.request.url.path}"
        assert error_of(response)["message"].startswith(f"This server has no {asked}; it has GET /v1/models, POST ")


def test_the_field_that_asks_for_too_many_tokens_is_named(runner):
    with serving(runner, Limits(new_tokens=5)) as client:
        for field in ("max_tokens", "max_completion_tokens"):
            asked = {name: value for name, value in QUESTION.items() if name != "max_tokens"} | {field: 6}
            error = error_of(client.post(CHAT, json=asked))
            assert (error["code"], error["param"]) == ("too_many_tokens", field)
            assert error["message"].endswith("Ask for fewer.")


@pytest.mark.parametrize(
    ("limits", "change", "status", "code"),
    [
        (Limits(body_bytes=500), {"user": "x" * 600}, 413, "request_too_large"),
        (Limits(images=1), {"messages": [{"role": "user", "content": [image_part()] * 2}]}, 400, "too_many_images"),
        (Limits(image_pixels=99), {"messages": [{"role": "user", "content": [image_part()]}]}, 400, "invalid_input"),
        (Limits(new_tokens=5), {}, 400, "too_many_tokens"),
        (Limits(seconds=0.001), {"max_tokens": 500}, 504, "timeout"),
    ],
    ids=["bytes", "images", "pixels", "tokens", "seconds"],
)
def test_each_limit_is_named_by_its_error(runner, limits, change, status, code):
    with serving(runner, limits) as client:
        response = client.post(CHAT, json={**QUESTION, **change})
        assert response.status_code == status, response.text
        assert error_of(response)["code"] == code


def test_a_body_that_does_not_tell_its_size_is_cut_off_too(runner):
    with serving(runner, Limits(body_bytes=1000)) as client:
        response = client.post(CHAT, content=iter([b'{"model": "' + b"x" * 600] * 3))
        assert response.status_code == 413


def test_a_full_queue_answers_429_and_when_to_come_again(runner):
    with serving(runner, options=BatchingOptions(max_rows=1, max_queued=1)) as client, ThreadPoolExecutor(8) as clients:
        asked = {**QUESTION, "n": 2, "max_tokens": 200}
        responses = [*clients.map(lambda _: client.post(CHAT, json=asked), range(8))]
        assert {response.status_code for response in responses} == {200, 429}
        refused = next(response for response in responses if response.status_code == 429)
        assert error_of(refused)["type"] == "rate_limit_error"
        assert int(refused.headers["Retry-After"]) >= 1
        assert client.post(CHAT, json=QUESTION).status_code == 200  # what was taken of the refused is given up


def test_more_answers_than_the_server_ever_takes_are_no_matter_of_coming_again(runner):
    with serving(runner, options=BatchingOptions(max_rows=1, max_queued=1)) as client:
        response = client.post(CHAT, json={**QUESTION, "n": 3})
        assert (response.status_code, error_of(response)["code"]) == (400, "too_many_answers")


def test_a_body_that_stops_coming_is_given_up(runner):
    app = create_app(BatchingRunner(runner), ServerSettings(MODEL, limits=Limits(body_seconds=0.05)))
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "query_string": b""}
    pieces = iter([{"type": "http.request", "body": b"{", "more_body": True}])
    sent: list[dict] = []

    async def receive() -> dict:
        return next(pieces, None) or await asyncio.Event().wait()

    async def send(message: dict) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    start, body = sent
    assert start["status"] == 408
    assert json.loads(body["body"])["error"]["code"] == "request_stalled"


def test_a_key_is_needed_where_keys_are_set_but_not_for_probes(runner):
    with serving(runner, api_keys=("secret", "other")) as client:
        refused = client.post(CHAT, json=QUESTION)
        assert refused.status_code == 401
        assert error_of(refused)["code"] == "invalid_api_key"
        for key in ("secret", "other"):
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert client.get("/v1/models", headers={"Authorization": "Bearer sécret".encode()}).status_code == 401
        assert [client.get(path).status_code for path in ("/health", "/ready", "/metrics", "/")] == [200] * 4


def test_metrics_count_what_happened(client):
    client.post(CHAT, json=QUESTION)
    client.post(CHAT, json={**QUESTION, "model": "another"})
    text = client.get("/metrics").text
    for line in (
        "r1v_time_to_first_token_seconds_count 1.0",
        'r1v_answers_total{finish_reason="length"} 1.0',
        "r1v_generated_tokens_total 6.0",
        'r1v_errors_total{code="model_not_found"} 1.0',
        'r1v_http_responses_total{route="/v1/chat/completions",status="404"} 1.0',
    ):
        assert line in text


def test_the_access_log_has_ids_and_counts_and_no_content(client, caplog):
    with caplog.at_level("INFO", "r1v_export.serve.gate"):
        secret = [{"role": "user", "content": "my secret"}]
        response = client.post(CHAT, json={**QUESTION, "messages": secret}, headers={"X-Request-Id": "abc-1"})
    assert response.headers["X-Request-Id"] == "abc-1"
    record = caplog.records[-1]
    assert (record.request_id, record.status, record.completion_tokens) == ("abc-1", 200, 6)
    assert "secret" not in str(vars(record))


def test_a_request_id_that_could_forge_a_log_line_is_replaced(client):
    assert client.get("/health", headers={"X-Request-Id": "a b"}).headers["X-Request-Id"] != "a b"


def test_unknown_routes_and_methods_answer_in_the_api_s_shape(client):
    assert error_of(client.get("/v2/x"))["code"] == "not_found"
    assert error_of(client.get(CHAT))["code"] == "method_not_allowed"
    assert client.post(CHAT + "/", json=QUESTION, follow_redirects=False).status_code == 404


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get("/")
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    assert "http://" not in page.text
    for path in ("/static/page.js", "/static/page.css"):
        assert client.get(path).status_code == 200


def test_examples_of_images_answer_over_data_urls(client):
    url = data_url(Path("examples/images/06-count.png"))
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    assert client.post(CHAT, json={**QUESTION, "messages": messages}).status_code == 200


def test_the_dashboard_asks_for_metrics_that_exist(client):
    client.post(CHAT, json={**QUESTION, "messages": [{"role": "user", "content": [image_part()]}]})
    client.post(CHAT, json={**QUESTION, "model": "another"})
    exported = set(re.findall(r"^(?:# TYPE )?(r1v_\w+)", client.get("/metrics").text, re.MULTILINE))
    panels = json.loads(Path("r1v_export/serve/static/grafana.json").read_text("utf-8"))["panels"]
    asked = {name for panel in panels for query in panel["targets"] for name in re.findall(r"r1v_\w+", query["expr"])}
    assert len(asked) > 10
    assert asked - exported == set()


def test_log_probabilities_are_the_model_s_and_the_same_in_a_stream(client, runner):
    asked = {**QUESTION, "logprobs": True, "top_logprobs": 2}
    whole = client.post(CHAT, json=asked).json()["choices"][0]["logprobs"]
    tokens = whole["reasoning"] + whole["content"]
    alone = runner.answer(Request.ask("What?"), Sampling(max_new_tokens=6, logprobs=2))
    assert [token["logprob"] for token in tokens] == [each.logprob for each in alone.logprobs]
    assert [bytes(token["bytes"]) for token in tokens] == [runner.tokenizer.token_bytes(id_) for id_ in alone.token_ids]
    for token in tokens:
        assert token["logprob"] == token["top_logprobs"][0]["logprob"] > token["top_logprobs"][1]["logprob"]
    streamed = [event["choices"][0]["logprobs"] for event in events(client.post(CHAT, json={**asked, "stream": True}))]
    again = [token for each in streamed if each for token in each["reasoning"] + each["content"]]
    assert [token["bytes"] for token in again] == [token["bytes"] for token in tokens]
    # The second request begins in the first one's cache, whose prompt went through the decoder at once.
    assert [token["logprob"] for token in again] == pytest.approx([token["logprob"] for token in tokens], abs=1e-4)
    text = client.post(
        "/v1/completions", json={"model": MODEL, "prompt": "Once", "max_tokens": 3, "temperature": 0, "logprobs": 1}
    ).json()["choices"][0]["logprobs"]
    assert len(text["tokens"]) == len(text["token_logprobs"]) == len(text["text_offset"]) == 3
    assert error_of(client.post(CHAT, json={**QUESTION, "top_logprobs": 2}))["code"] == "invalid_value"


def test_sampling_fields_reach_the_sampler(client, runner):
    fields = {"min_p": 0.1, "presence_penalty": 0.5, "frequency_penalty": -1, "thinking_budget": 2}
    asked = {**QUESTION, **fields, "logit_bias": {"65": 100}}
    message = client.post(CHAT, json=asked).json()["choices"][0]["message"]
    sampling = Sampling(6, min_p=0.1, presence_penalty=0.5, frequency_penalty=-1, logit_bias={65: 100})
    alone = runner.answer(Request.ask("What?"), replace(sampling, max_reasoning_tokens=2))
    assert (message["reasoning_content"] or "", message["content"]) == (alone.reasoning, alone.text)
    wrong = error_of(client.post(CHAT, json={**QUESTION, "logit_bias": {"x": 1}}))
    assert wrong["code"] == "invalid_value"
    assert wrong["message"].endswith("expected the number of a token as the key, found 'x'; send such a key.")


def test_an_answer_that_ignores_stop_tokens_goes_on_to_its_limit(client, runner):
    (stop, *_) = runner.stop_ids
    fields = {"max_tokens": 7, "logit_bias": {str(stop): 100}}  # the first token is one that stops
    for ignored, tokens, reason in [(False, 1, "stop"), (True, 7, "length")]:
        body = client.post(CHAT, json={**QUESTION, **fields, "ignore_eos": ignored}).json()
        assert (body["usage"]["completion_tokens"], body["choices"][0]["finish_reason"]) == (tokens, reason)


def test_an_answer_keeps_its_form_after_the_reasoning(client):
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "count", "schema": schema, "strict": True}}
    asked = {**QUESTION, "max_tokens": 200, "thinking_budget": 3, "temperature": 1, "seed": 1}
    choice = client.post(CHAT, json={**asked, "response_format": form}).json()["choices"][0]
    assert json.loads(choice["message"]["content"])["n"] in (1, 2)
    choice = client.post(CHAT, json={**asked, "guided_regex": "(red|blue)!"}).json()["choices"][0]
    assert choice["message"]["content"] in ("red!", "blue!")
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "change",
    [
        {"guided_regex": "("},
        {"guided_regex": "a", "response_format": {"type": "text"}},
        {"response_format": {"type": "xml"}},
        {"guided_regex": "a", "ignore_eos": True},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}},
    ],
)
def test_a_form_that_cannot_be_is_refused(client, change):
    response = client.post(CHAT, json={**QUESTION, **change})
    assert response.status_code == 400, response.text
    assert error_of(response)["message"]
