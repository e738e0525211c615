"""Ask a bundle about the ten images of `examples/images`, none of which r1v-nano was trained on.

python examples/ten_images.py out/demo
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from r1v_export import Request, load_image, open_runner

IMAGES = Path(__file__).parent / "images"


def main(bundle: Path) -> None:
    rows = [json.loads(line) for line in (IMAGES / "questions.jsonl").read_text().splitlines()]
    requests = [Request.ask(row["question"], load_image(IMAGES / row["image"])) for row in rows]
    answers = open_runner(bundle).answers(requests)
    right = 0
    for row, answer in zip(rows, answers, strict=True):
        is_right = answer.text.strip() == row["answer"]
        right += is_right
        print(f"{row['image']:20} {row['question']:75} {answer.text:10} {'ok' if is_right else 'not ' + row['answer']}")
    print(f"{right} of {len(rows)} right")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
