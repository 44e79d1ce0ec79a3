"""What a network of poses could give, from seeds: the same for the reference and for ours.

Values are rounded, so that they are equal on every machine.
"""

import numpy as np

# OpenPose's limbs with the first of their two maps, written out from the reference.
LIMBS = (
    *((1, 2, 12), (1, 5, 20), (2, 3, 14), (3, 4, 16), (5, 6, 22), (6, 7, 24), (1, 8, 0)),
    *((8, 9, 2), (9, 10, 4), (1, 11, 6), (11, 12, 8), (12, 13, 10), (1, 0, 28), (0, 14, 30)),
    *((14, 16, 34), (0, 15, 32), (15, 17, 36), (2, 16, 18), (5, 17, 26)),
)


def rounded(values: np.ndarray) -> np.ndarray:
    return (np.round(values * 1024) / 1024).astype(np.float32)


def body_maps(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Limb fields (38, h, w) and points (19, h, w) of one to four people in a picture."""
    rng = np.random.default_rng(seed)
    scale = 0.5 * 368 / height
    high, wide = -(-int(height * scale) // 8), -(-int(width * scale) // 8)
    y, x = np.mgrid[:high, :wide].astype(float)
    fields, points = np.zeros((38, high, wide)), np.zeros((19, high, wide))
    for _ in range(rng.integers(1, 5)):
        middle = rng.uniform(0.2, 0.8, 2) * (wide, high)
        places = middle + rng.normal(0, min(high, wide) / 5, (18, 2))
        seen = rng.random(18) > 0.15
        for part in np.flatnonzero(seen):
            away = (x - places[part, 0]) ** 2 + (y - places[part, 1]) ** 2
            spot = rng.uniform(0.3, 1) * np.exp(-away / 2 / rng.uniform(0.5, 1.5) ** 2)
            points[part] = np.maximum(points[part], spot)
        for start, end, channel in LIMBS:
            if not (seen[start] and seen[end]):
                continue
            gap = places[end] - places[start]
            length = np.hypot(*gap) + 1e-6
            across, down = gap / length
            along = (x - places[start, 0]) * across + (y - places[start, 1]) * down
            aside = np.abs((x - places[start, 0]) * down - (y - places[start, 1]) * across)
            near = (along > -1) & (along < length + 1) & (aside < 1.2)
            fields[channel][near] += across
            fields[channel + 1][near] += down
    fields += rng.normal(0, 0.05, fields.shape)
    points += rng.normal(0, 0.02, points.shape)
    return rounded(fields), rounded(points)


def part_maps(seed: int, count: int, side: int) -> np.ndarray:
    """(count, side, side): a spot or two in most of the maps, at the same places at every size."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    maps = np.zeros((count, side, side))
    for share in (0.1, 0.6):
        places = rng.uniform(0, 1, (count, 2))
        heights = rng.uniform(0.02, 0.9, count) * (rng.random(count) > share)
        away = (x - places[:, :1, None]) ** 2 + (y - places[:, 1:, None]) ** 2
        maps += heights[:, None, None] * np.exp(-away / 2 / 0.04**2)
    return rounded(maps + rng.normal(0, 0.01, maps.shape))


def yolox_output(seed: int) -> np.ndarray:
    """(1, 8400, 85): up to three people, each seen by a dozen cells, and faint noise."""
    rng = np.random.default_rng(seed)
    output = rng.normal(0, 0.3, (1, 8400, 85))
    output[..., 4:] = rng.random((1, 8400, 81)) * 0.4
    for _ in range(rng.integers(1, 4)):
        x, y = rng.uniform(100, 540, 2)
        width, height = rng.uniform(40, 400, 2)
        for number in range(12):
            stride, first = ((8, 0), (16, 6400), (32, 8000))[number % 3]
            column = int(np.clip(x / stride + rng.normal(0, 0.8), 0, 640 // stride - 1))
            row = int(np.clip(y / stride + rng.normal(0, 0.8), 0, 640 // stride - 1))
            size = np.log([width / stride, height / stride]) + rng.normal(0, 0.05, 2)
            cell = output[0, first + row * (640 // stride) + column]
            cell[:6] = [x / stride - column, y / stride - row, *size, *rng.uniform(0.5, 1, 2)]
    return rounded(output)


def animal_output(seed: int) -> np.ndarray:
    """The same for animals: some cells see two kinds of them, and faint people."""
    output = yolox_output(seed)
    person, kind = output[..., 5].copy(), 14 + seed % 10
    output[..., 5 + kind] = person
    output[..., 5 + 16] = np.where(person > 0.8, person, output[..., 5 + 16])
    output[..., 5] *= 0.1
    return output


def simcc_output(
    seed: int, people: int, points: int = 133, sizes: tuple[int, int] = (576, 768)
) -> list[np.ndarray]:
    """(people, points, size) for each size: one peak for each point, some of them faint."""
    rng = np.random.default_rng(seed)
    maps = [rng.normal(0, 0.1, (people, points, bins)) for bins in sizes]
    for person in range(people):
        for point in range(points):
            peak = rng.uniform(-0.2, 1.2)
            for one in maps:
                one[person, point, rng.integers(0, one.shape[-1])] += peak
    return [rounded(one) for one in maps]


def picture(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def seeded_weights(net) -> dict:
    """Weights for every name of the net, of a size that keeps values alive through the layers."""
    import torch

    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, value in sorted(net.state_dict().items()):
        spread = (2 / value[0].numel()) ** 0.5 if value.ndim > 1 else 0.1
        found[name] = torch.randn(value.shape, generator=generator) * spread
    return found


class Session:
    """What onnxruntime gives; keeps its inputs."""

    def __init__(self, give, seen):
        self.give, self.seen = give, seen

    def get_inputs(self):
        return [type("Input", (), {"name": "pixels", "shape": ["batch"]})]

    def run(self, names, feed):
        assert names is None
        self.seen.append(feed["pixels"])
        return self.give(feed["pixels"])
