"""Class names of CIFAR-10 and CIFAR-100 by official id, and CIFAR-100's superclasses (Krizhevsky 2009)."""

from __future__ import annotations

CIFAR10_CLASSES: tuple[str, ...] = tuple(
    "airplane automobile bird cat deer dog frog horse ship truck".split()
)

# Fine classes of each of the 20 superclasses; the fine id is the place in alphabetical order.
CIFAR100_SUPERCLASSES: dict[str, tuple[str, ...]] = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}

CIFAR100_CLASSES: tuple[str, ...] = tuple(
    sorted(fine for names in CIFAR100_SUPERCLASSES.values() for fine in names)
)

# Superclass id of each fine id, as in the archive's `coarse_labels`.
CIFAR100_COARSE: tuple[int, ...] = tuple(
    next(coarse for coarse, names in enumerate(CIFAR100_SUPERCLASSES.values()) if fine in names)
    for fine in CIFAR100_CLASSES
)


def next_in_superclass() -> dict[int, int]:
    """The next fine class of CIFAR-100, by id, within the superclass; after the last comes the first."""
    target: dict[int, int] = {}
    for coarse in range(20):
        members = [fine for fine in range(100) if CIFAR100_COARSE[fine] == coarse]
        target |= dict(zip(members, members[1:] + members[:1], strict=True))
    return target


# Truck to automobile, bird to airplane, deer to horse, cat to dog and dog to cat.
CIFAR10_CONFUSIONS: dict[str, dict[int, int]] = {"asymmetric": {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}}

CIFAR100_CONFUSIONS: dict[str, dict[int, int]] = {
    "asymmetric": next_in_superclass(),
    "asymmetric-idblock": {c: c // 5 * 5 + (c + 1) % 5 for c in range(100)},
}
