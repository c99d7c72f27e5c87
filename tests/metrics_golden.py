"""Golden values of metrics: `python tests/metrics_golden.py` writes tests/golden/metrics/*.json.

Needs numpy, pycocotools, rouge-score, sacrebleu, scikit-learn and torchmetrics (made with the versions that the files
name). The metrics are tested against these files.
"""

import contextlib
import importlib.metadata
import io
import json
import pathlib
import random

import numpy
import sacrebleu
import sklearn
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score
from torchmetrics.classification import BinaryF1Score
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.functional.segmentation import dice_score
from torchmetrics.image.fid import _compute_fid
from torchmetrics.retrieval import RetrievalHitRate

FOLDER = pathlib.Path(__file__).parent / "golden" / "metrics"


def made_with(*packages):
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def classes():
    draw = random.Random(1)
    cases = []
    # Labels that are never expected, never answered, or neither come in the second and third.
    for labels, rows, expected_of, answered_of in [
        (4, 60, range(4), range(4)),
        (5, 30, range(3), range(5)),
        (6, 25, [0, 2, 5], [0, 2]),
        (2, 7, [1], [0]),
    ]:
        expected = [draw.choice(list(expected_of)) for _ in range(rows)]
        answered = [e if draw.random() < 0.6 and e in answered_of else draw.choice(list(answered_of)) for e in expected]
        cases.append(
            {
                "labels": labels,
                "expected": expected,
                "answered": answered,
                "accuracy": accuracy_score(expected, answered),
                "macro_f1": f1_score(expected, answered, average="macro", zero_division=0),
                "confusion": confusion_matrix(expected, answered, labels=range(labels)).tolist(),
            }
        )
    return {"made_with": f"scikit-learn {sklearn.__version__}", "cases": cases}


# Signs that the tokens of mteval-v13a treat in different ways, spaces that only Python or only Unicode has among them.
PIECES = list("abZ019.,-'\"&<>$%()[]{}~`^_|\\/:;!?@#*+= ") + [
    " ", " ", "\n", "-\n", "\t", "\r", "\x1c", "\x85", "\u00a0", "\u200b", "\u3000", "é", "ß", "漢", "字", "…", "“", "½",
    "٣", "🙂", "e\u0301", "<skipped>", "&quot;", "&amp;", "&lt;", "&gt;", "&amp;lt;", "1,000.5", "3-4", "U.S.",
]


def bleu():
    draw = random.Random(2)
    sentences = [
        ("A cat sits on the red mat.", "A cat sits on a red mat."),
        ("Total: $1,234.50 (incl. 7.5% tax), due 2024-05-01.", "Total: $1,234.50 incl. 7.5 % tax, due 2024-05-01"),
        ("Naïve café — “quoted” text… 東京 は 大きい 。", "Naive café - “quoted” text... 東京 は 大きい 。"),
        ("It's the U.S. team's 3-4 loss, isn't it?", "It's the US team's 3-4 loss , isn't it ?"),
        ("AT&amp;T says &quot;no&quot; &lt;b&gt;", 'AT&T says "no" <b>'),
        ("the the the the the", "the the the the the the the the"),
    ]
    expected, answered = [e for e, _ in sentences], [a for _, a in sentences]
    noise = [["".join(draw.choices(PIECES, k=draw.randrange(1, 40))) for _ in range(12)] for _ in range(2)]
    # The half is kept, so that there is something right.
    noise[1] = [one[: len(one) // 2] + other for one, other in zip(*noise)]
    cases = [
        (expected, answered),
        (expected, expected),
        *(([e], [a]) for e, a in sentences),
        # Nothing right of four, of three and of two in a row: smoothed.
        (["a b c d e f"], ["a b c x e f"]),
        (["a b c d e f"], ["a b x d e y"]),
        (["a b c d e f"], ["f d b x y a"]),
        # Nothing right at all, too short for four in a row, and empty ones.
        (["a b c d"], ["w x y z"]),
        (["yes"], ["yes"]),
        (["a b c", "no"], ["a b c", "no"]),
        (["a b c d e", "f g"], ["a b c d e", ""]),
        (["a b c d e", ""], ["a b c d e", "f g"]),
        (["a b c d"], [""]),
        ([""], [""]),
        # Much shorter, and much longer.
        (["a b c d e f g h i j k l"], ["a b c d"]),
        (["a b c d"], ["a b c d e f g h i j k l"]),
        (["A B C D E"], ["a b c d E"]),
        tuple(noise),
    ]
    texts = ["".join(draw.choices(PIECES, k=draw.randrange(1, 25))) for _ in range(150)]
    tokenize = Tokenizer13a()
    return {
        "made_with": made_with("sacrebleu"),
        "cases": [
            {"expected": e, "answered": a, "score": sacrebleu.corpus_bleu(a, [e]).score / 100} for e, a in cases
        ],
        # As `BLEU._preprocess_segment` and `extract_all_word_ngrams` have them.
        "tokens": [{"text": text, "tokens": tokenize(text.rstrip()).split()} for text in texts if text.strip()],
    }


def rouge():
    draw = random.Random(3)
    pairs = [
        ("A cat sits on the red mat.", "The red cat sat on a mat!"),
        ("the cat", "the cat"),
        ("The CAT", "the cat"),
        ("police killed the gunman", "the gunman kill police"),
        ("Total: $1,234.50", "total 1 234 50"),
        ("Naïve café — 東京", "nai ve caf"),
        ("İstanbul K", "i stanbul k"),
        ("running runs", "run run"),
        ("snake_case under-score", "snake case underscore"),
        ("東京", "東京"),
        ("", "a"),
        ("a", ""),
        ("", ""),
        ("a a a b", "b a a"),
    ]
    words = "a b c d e".split()
    pairs += [
        (" ".join(draw.choices(words, k=draw.randrange(1, 30))), " ".join(draw.choices(words, k=draw.randrange(1, 30))))
        for _ in range(30)
    ]
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    cases = [{"expected": e, "answered": a, "score": scorer.score(e, a)["rougeL"].fmeasure} for e, a in pairs]
    return {"made_with": made_with("rouge-score"), "cases": cases}


def coco_map(labels, images):
    """Of every picture's (truth, found) both mean average precisions; 0 where pycocotools has -1, without any truth."""
    sides = [{"images": [], "annotations": [], "categories": [{"id": n} for n in range(labels)]} for _ in range(2)]
    for number, image in enumerate(images):
        for side, boxes in zip(sides, image):
            side["images"].append({"id": number})
            for label, (left, top, right, bottom), *score in boxes:
                side["annotations"].append(
                    {
                        "id": len(side["annotations"]) + 1,
                        "image_id": number,
                        "category_id": label,
                        "bbox": [left, top, right - left, bottom - top],
                        "area": (right - left) * (bottom - top),
                        "iscrowd": 0,
                        **({"score": score[0]} if score else {}),
                    }
                )
    with contextlib.redirect_stdout(io.StringIO()):
        both = []
        for side in sides:
            both.append(COCO())
            both[-1].dataset = side
            both[-1].createIndex()
        evaluation = COCOeval(*both, iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [max(0.0, float(evaluation.stats[place])) for place in (1, 0)]


def best_overlaps(images):
    """Mean of every true box' best overlap among as many found ones, best scores first, as there are true ones."""
    overlaps = []
    corners = lambda box: [box[1][0], box[1][1], box[1][2] - box[1][0], box[1][3] - box[1][1]]
    for truth, found in images:
        found = sorted(found, key=lambda box: -box[2])[: len(truth)]
        for box in truth:
            same = [corners(other) for other in found if other[0] == box[0]]
            overlaps.append(coco_mask.iou(same, [corners(box)], [0]).max() if same else 0.0)
    return float(numpy.mean(overlaps)) if overlaps else 0.0


def box_case(name, labels, images):
    map_50, map_50_95 = coco_map(labels, images)
    true = [box for truth, _ in images for box in truth]
    # Rounded as corners are: to f32.
    mean = numpy.mean([corners for _, corners in true], axis=0).astype(numpy.float32).tolist() if true else None
    counts = [sum(label == number for label, _ in true) for number in range(labels)]
    baseline = [(truth, [(counts.index(max(counts)), mean, 1.0)] if true else []) for truth, _ in images]
    return {
        "name": name,
        "labels": labels,
        "images": [{"truth": truth, "found": found} for truth, found in images],
        "map_50": map_50,
        "map_50_95": map_50_95,
        "mean_iou": best_overlaps(images),
        "mean_box_map_50": coco_map(labels, baseline)[0],
        "mean_box_iou": best_overlaps(baseline),
    }


def boxes():
    draw = random.Random(4)

    def some_box():
        left, top = draw.randrange(60), draw.randrange(60)
        return [left, top, left + draw.randrange(8, 40), top + draw.randrange(8, 40)]

    def moved(box, reach):
        return [corner + draw.randrange(-reach, reach + 1) for corner in box]

    # Scores have so few digits that many are equal, within pictures and among them.
    def score():
        return draw.randrange(1, 10) / 8

    def images(count, labels, most, reach, false, other_label=0.0):
        made = []
        for _ in range(count):
            truth = [(draw.randrange(labels), some_box()) for _ in range(draw.randrange(most + 1))]
            found = [
                (draw.randrange(labels) if draw.random() < other_label else label, moved(box, reach), score())
                for label, box in truth
                if draw.random() < 0.85
            ]
            found += [(draw.randrange(labels), some_box(), score()) for _ in range(draw.randrange(false + 1))]
            draw.shuffle(found)
            made.append((truth, found))
        return made

    one, one_side = [10, 10, 20, 20], [0, 0, 10, 9]
    # 7 of 20: a recall that is just one of those whose precision counts.
    row = [[12 * place, 0, 12 * place + 10, 10] for place in range(20)]
    crowd = [(0, some_box(), 1.0) for _ in range(99)]
    cases = [
        ("few false", 3, images(14, 3, 3, 2, 1)),
        ("many false", 4, images(14, 4, 3, 3, 5, 0.2)),
        ("all right", 2, [([(0, one), (1, [5, 5, 50, 40])], [(1, [5, 5, 50, 40], 0.5), (0, one, 0.25)])]),
        ("nothing found", 2, [([(0, one)], []), ([(1, one)], [])]),
        ("nothing there", 2, [([], [(0, one, 0.5)]), ([], [])]),
        ("pictures without truth", 1, [([], [(0, one, 0.75)]), ([(0, one)], [(0, one, 0.5)]), ([], [(0, one, 0.25)])]),
        ("label only found", 3, [([(0, one), (2, one)], [(1, one, 1.0), (0, one, 0.5), (2, [10, 10, 20, 16], 0.5)])]),
        ("found twice", 1, [([(0, one)], [(0, one, 0.5), (0, one, 0.5), (0, [11, 10, 20, 20], 0.75)])]),
        # The first answer overlaps both alike, the second only one of them enough.
        ("two alike", 1, [([(0, [0, 0, 10, 10]), (0, [4, 0, 14, 10])], [(0, [2, 0, 12, 10], 1), (0, one_side, 0.5)])]),
        ("overlap just enough", 1, [([(0, [0, 0, 10, 10])], [(0, [0, 0, 10, side], 0.5)]) for side in (5, 6, 9)]),
        ("seven of twenty", 1, [([(0, box) for box in row], [(0, box, 0.5) for box in row[:7]])]),
        # The one that is right comes as the 100th and the 101st.
        ("just among 100", 1, [([(0, [70, 70, 170, 170])], crowd + [(0, [70, 70, 170, 170], 0.5)])]),
        ("not among 100", 1, [([(0, [70, 70, 170, 170])], crowd + [(0, one, 0.75), (0, [70, 70, 170, 170], 0.5)])]),
        ("without area", 1, [([(0, one), (0, [5, 5, 5, 9])], [(0, [5, 5, 5, 9], 1.0), (0, one, 0.5)])]),
    ]
    return {"made_with": made_with("pycocotools"), "cases": [box_case(*case) for case in cases]}


def masks():
    draw = random.Random(5)

    def mask(pixels, share):
        return [int(draw.random() < share) for _ in range(pixels)]

    cases = []
    for rows in [
        [(mask(pixels, 0.4), mask(pixels, 0.5)) for pixels in (60, 25, 90, 7)],
        # Both empty, either empty, both full, without a shared pixel.
        [([0] * 9, [0] * 9), ([0] * 9, [1] * 9), ([1] * 9, [0] * 9), ([1] * 9, [1] * 9), ([1, 0, 0], [0, 1, 0])],
        [([0] * 5, [0] * 5), ([0] * 3, [0] * 3)],
        [(mask(30, 0.1), mask(30, 0.1)) for _ in range(6)],
        [(mask(16, 0.3), [0] * 16) for _ in range(3)],
    ]:
        dice = [f1_score(*row, zero_division=1) for row in rows]
        all_pixels = [sum(side, []) for side in zip(*rows)]
        pooled = f1_score(*all_pixels, zero_division=1)
        # torchmetrics is the same where both are not empty.
        for (truth, answered), value in zip(rows, dice):
            own, other = torch.tensor([[truth]]), torch.tensor([[answered]])
            theirs = dice_score(other, own, num_classes=1, average="micro", input_format="one-hot").item()
            assert abs(theirs - value) < 1e-6 if sum(truth) + sum(answered) else numpy.isnan(theirs)
        theirs = BinaryF1Score(zero_division=1)(torch.tensor(all_pixels[1]), torch.tensor(all_pixels[0])).item()
        assert abs(theirs - pooled) < 1e-6
        cases.append(
            {
                "truth": [truth for truth, _ in rows],
                "answered": [answered for _, answered in rows],
                "dice": float(numpy.mean(dice)),
                "iou": float(numpy.mean([jaccard_score(*row, zero_division=1) for row in rows])),
                "pooled_dice": float(pooled),
                "empty_mask_dice": float(
                    numpy.mean([f1_score(truth, [0] * len(truth), zero_division=1) for truth, _ in rows])
                ),
            }
        )
    return {"made_with": made_with("scikit-learn", "torchmetrics"), "cases": cases}


def ranks():
    draw = random.Random(6)

    def recall(similarities, same, k):
        rows, columns = similarities.shape
        indexes = torch.arange(rows).unsqueeze(1).expand(rows, columns)
        return RetrievalHitRate(top_k=k)(similarities.flatten(), same.flatten(), indexes=indexes.flatten()).item()

    cases = []
    for rows, columns, captions in [(12, 12, 12), (15, 15, 6), (4, 4, 4), (1, 1, 1), (9, 14, 0), (14, 9, 0)]:
        # None is equal to another.
        values = draw.sample(range(-1000, 1000), rows * columns)
        similarities = torch.tensor(values, dtype=torch.float64).reshape(rows, columns) / 1000
        if captions:
            ids = [draw.randrange(captions) if captions < rows else row for row in range(rows)]
            same = torch.tensor([[one == other for other in ids] for one in ids])
            # Better than chance.
            similarities += 0.3 * torch.eye(rows) + 0.0003 * torch.rand(rows, rows, generator=torch.manual_seed(rows))
            similarities = (similarities * 1e6).round() / 1e6
        else:
            # Some rows have nothing that is the same.
            same = torch.tensor([[draw.random() < 0.1 for _ in range(columns)] for _ in range(rows)])
        assert similarities.float().unique().numel() == rows * columns
        case = {"similarities": similarities.tolist(), "same": same.int().tolist()}
        for k in (1, 5, 10):
            case[f"recall_at_{k}"] = recall(similarities, same, k)
            case[f"caption_recall_at_{k}"] = recall(similarities.T, same.T, k)
        case["chance_recall_at_1"] = same.double().mean().item()
        cases.append(case)
    return {"made_with": made_with("torchmetrics"), "cases": cases}


def pictures():
    draw = numpy.random.default_rng(7)
    cases = []
    for width, height, kind in [
        (11, 11, "noise"),
        (16, 12, "near"),
        (13, 24, "near"),
        (17, 14, "shifted"),
        (12, 11, "equal"),
        (11, 12, "flat"),
        (12, 12, "black and white"),
    ]:
        rows, columns = numpy.mgrid[:height, :width]
        smooth = numpy.stack([rows * 9 + 20, columns * 11 + 5, (rows + columns) * 5], axis=2) % 256
        one = smooth.astype(numpy.uint8)
        other = {
            "noise": lambda: draw.integers(0, 256, one.shape),
            "near": lambda: numpy.clip(smooth + draw.integers(-25, 26, one.shape), 0, 255),
            "shifted": lambda: numpy.roll(smooth, 2, axis=1),
            "equal": lambda: smooth,
            "flat": lambda: numpy.full(one.shape, 130),
            "black and white": lambda: one * 0 + 255,
        }[kind]().astype(numpy.uint8)
        if kind == "black and white":
            one = one * 0
        tensors = [torch.tensor(side).permute(2, 0, 1).unsqueeze(0).double() for side in (one, other)]
        psnr = peak_signal_noise_ratio(*tensors, data_range=255.0).item()
        cases.append(
            {
                "width": width,
                "height": height,
                "one": one.flatten().tolist(),
                "other": other.flatten().tolist(),
                # JSON has no infinity.
                "psnr": psnr if numpy.isfinite(psnr) else None,
                "ssim": structural_similarity_index_measure(*tensors, data_range=255.0).item(),
            }
        )
    return {"made_with": made_with("torchmetrics", "torch"), "cases": cases}


def frechet():
    draw = numpy.random.default_rng(8)
    cases = []
    # With fewer vectors than dimensions torchmetrics takes roots of rounding errors, so that less is equal.
    for one_rows, other_rows, dimensions, tolerance in [
        (20, 14, 4, 1e-10),
        (30, 40, 6, 1e-10),
        (5, 9, 1, 1e-10),
        (6, 8, 12, 1e-6),
        (9, 4, 16, 1e-6),
        (25, 5, 8, 1e-6),
        (2, 2, 5, 1e-6),
    ]:
        mix = draw.normal(size=(dimensions, dimensions))
        one = (draw.normal(size=(one_rows, dimensions)) @ mix).round(3)
        other = (1.5 * draw.normal(size=(other_rows, dimensions)) + 0.5).round(3)
        tensors = [torch.tensor(side, dtype=torch.float64) for side in (one, other)]
        gaussians = [value for side in tensors for value in (side.mean(0), torch.cov(side.T).reshape(dimensions, -1))]
        distance = _compute_fid(*gaussians).item()
        cases.append({"one": one.tolist(), "other": other.tolist(), "tolerance": tolerance, "distance": distance})
    return {"made_with": made_with("torchmetrics", "torch"), "cases": cases}


def lines(golden):
    """JSON with a line for each case."""
    parts = []
    for name, value in golden.items():
        if isinstance(value, list):
            value = "[\n" + ",\n".join("  " + json.dumps(case) for case in value) + "\n ]"
        else:
            value = json.dumps(value)
        parts.append(f" {json.dumps(name)}: {value}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "classes.json").write_text(json.dumps(classes(), indent=1) + "\n")
    for make in (bleu, rouge, boxes, masks, ranks, pictures, frechet):
        (FOLDER / f"{make.__name__}.json").write_text(lines(make()))
