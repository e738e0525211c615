"""A real inference, for health checks: READY says that a model is loaded, not that it answers. Exits with 0 if it does.

Needs nothing but Python: python3 probe.py [URL]
"""

import json
import sys
import urllib.request


def answers(url: str) -> bool:
    """Whether the server at this address generates a token within 50 seconds."""
    sampling = json.dumps({"max_tokens": 1, "temperature": 0})
    body = {"text_input": "Hi", "enable_thinking": False, "stream": False, "sampling_parameters": sampling}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v2/models/r1v/generate", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=50) as response:
        answer = json.load(response)
    return int(json.loads(answer["usage"])["completion_tokens"]) >= 1


if __name__ == "__main__":
    sys.exit(0 if answers(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000") else 1)
