"""A runtime of its own: answers a question about images from a bundle's files, greedily, with nothing of this package.

python tests/serialized/standalone.py BUNDLE IMAGE QUESTION
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image
from tokenizers import Tokenizer


class Runtime:
    def __init__(self, bundle):
        self.contract = json.loads((bundle / "contract.json").read_text("utf-8"))
        self.pipeline = json.loads((bundle / "pipeline.json").read_text("utf-8"))
        self.tokenizer = text_tokenizer(bundle, self.pipeline["tokenizer"])
        target, engine = next(iter(self.pipeline["engines"].items()))
        folder, options = bundle / "engines" / target, engine["options"]
        self.sessions = {}
        for graph, file in engine["files"].items():
            session = ort.SessionOptions()
            root = (folder / options["weights_root"]).resolve()
            session.add_session_config_entry(options["weights_root_entry"], str(root))
            for name, value in options["session_entries"][graph].items():
                session.add_session_config_entry(name, value)
            self.sessions[graph] = ort.InferenceSession((folder / file).read_bytes(), session)
        self.graphs = {graph["name"]: graph for graph in self.contract["graphs"]}

    def run(self, graph, *arrays):
        """Every output of a graph, by name, for its inputs in the contract's order."""
        described = self.graphs[graph]
        feeds = {
            tensor["name"]: np.asarray(array, tensor["dtype"])
            for tensor, array in zip(described["inputs"], arrays, strict=True)
        }
        names = [tensor["name"] for tensor in described["outputs"]]
        return dict(zip(names, self.sessions[graph].run(names, feeds), strict=True))

    def tiles(self, image):
        rules, (width, height) = self.pipeline["tiling"], image.size
        size, nearest, grid = rules["tile_size"], float("inf"), None
        for candidate in rules["grids"]:
            distance = abs(width / height - candidate["cols"] / candidate["rows"])
            area = size * size * candidate["cols"] * candidate["rows"]
            if distance < nearest or (distance == nearest and width * height > 0.5 * area):
                nearest, grid = distance, candidate
        resized = image.resize((size * grid["cols"], size * grid["rows"]), Image.Resampling[rules["resize"].upper()])
        corners = [(size * col, size * row) for row in range(grid["rows"]) for col in range(grid["cols"])]
        tiles = [resized.crop((x, y, x + size, y + size)) for x, y in corners]
        if rules["thumbnail"] and len(tiles) > 1:
            tiles.append(image.resize((size, size), Image.Resampling[rules["resize"].upper()]))
        pixels = np.stack([np.asarray(tile, np.float32) for tile in tiles]) / np.float32(255)
        return ((pixels - np.float32(rules["mean"])) / np.float32(rules["std"])).transpose(0, 3, 1, 2)

    def prompt(self, question, tiles_per_image, think=True):
        """Ids of one user turn; pieces of text that touch each other are tokenized as one."""
        rules = self.pipeline["prompt"]
        images, pieces = rules["images"], [*rules["begin"]]
        if rules["default_system"]:
            pieces += [*rules["system"]["before"], {"text": rules["default_system"]}, *rules["system"]["after"]]
        text = images["default_position"] * len(tiles_per_image) + question
        first, *rest = text.split(images["placeholder"])
        pieces += [*rules["user"]["before"], {"text": first}]
        for part, tiles in zip(rest, tiles_per_image, strict=True):
            context = [images["context"]] * (tiles * images["tokens_per_tile"])
            pieces += [images["start"], *context, images["end"], {"text": part}]
        pieces += [*rules["user"]["after"], *rules["assistant"]["before"], *(rules["thinking"] if think else [])]
        ids, text = [], ""
        for piece in [*pieces, None]:
            if piece is not None and "text" in piece:
                text += piece["text"]
                continue
            ids += self.tokenizer.encode(text, add_special_tokens=False).ids
            ids += [] if piece is None else [piece["id"]]
            text = ""
        return ids

    def answer(self, question, images, max_new_tokens):
        """Generated ids, a stop token included."""
        tiles = [self.tiles(image.convert("RGB")) for image in images]
        ids = self.prompt(question, [len(each) for each in tiles])
        features = self.run("vision", np.concatenate(tiles))["vision_features"]
        embeds = self.run("projector", features)["image_embeds"].reshape(-1, self.contract["sizes"]["hidden"])
        cache, layers = self.contract["cache"], range(self.contract["cache"]["layers"])
        symbols = {"batch": 1, "capacity": len(ids) + max_new_tokens}
        shape = [symbols.get(dim, dim) for dim in cache["shape"]]
        pairs = [(cache[f"past_{kind}"], cache[f"present_{kind}"]) for kind in ("key", "value")]
        past = {past.format(layer=n): np.zeros(shape, cache["dtype"]) for n in layers for past, _ in pairs}
        stops, generated, new, start = {stop["id"] for stop in self.pipeline["stop_tokens"]}, [], ids, 0
        while len(generated) < max_new_tokens and not stops & set(generated):
            step = self.run("embed", [new], embeds)["inputs_embeds"]
            end = start + len(new)
            positions, last = [range(start, end)], [[len(new) - 1]]
            arrays = {cache["position_ids"]: positions, cache["write_index"]: [start], cache["length"]: [end]}
            arrays |= {cache["logits_index"]: last, **past}
            order = [tensor["name"] for tensor in self.graphs["decoder"]["inputs"]]
            outputs = self.run("decoder", step, *(arrays[name] for name in order if name != "inputs_embeds"))
            past = {p.format(layer=n): outputs[q.format(layer=n)] for n in layers for p, q in pairs}
            generated.append(int(outputs[cache["logits"]][0, 0].argmax()))
            new, start, embeds = generated[-1:], end, embeds[:0]
        return generated


def text_tokenizer(bundle, rules):
    """The definition without its added tokens."""
    definition = json.loads((bundle / rules["definition"]).read_text("utf-8"))
    added = {token["token"] for token in rules["added_tokens"]}
    definition |= {"added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
    model = definition["model"]
    model["vocab"] = {token: id_ for token, id_ in model["vocab"].items() if token not in added}
    return Tokenizer.from_str(json.dumps(definition))


if __name__ == "__main__":
    folder, image, asked = sys.argv[1:]
    print(json.dumps(Runtime(Path(folder)).answer(asked, [Image.open(image)], 128)))
