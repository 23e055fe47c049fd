"""The colours of classes, the same in every picture."""

from colorsys import hsv_to_rgb

_COLOURS = (
    0xE6194B, 0x3CB44B, 0x0082C8, 0xF58231, 0x911EB4, 0x46F0F0, 0xFFE119, 0xF032E6,
    0xAA6E28, 0x008080, 0xD2F53C, 0x000080, 0xFABED4, 0x800000, 0xAAFFC3, 0x808000,
)  # fmt: skip


def ink_on(ground: tuple[int, int, int]) -> str:
    """The colour of text that can be read on a ground: white or black, as CSS and Pillow write it."""
    return "#ffffff" if 0.299 * ground[0] + 0.587 * ground[1] + 0.114 * ground[2] < 140 else "#000000"


def class_colour(index: int) -> tuple[int, int, int]:
    """Red, green and blue of a class in every picture: the first sixteen by hand, so that they can be told apart."""
    if index < len(_COLOURS):
        colour = _COLOURS[index]
        return colour >> 16, colour >> 8 & 255, colour & 255
    hue, value = index * 0.61803398875 % 1.0, (0.95, 0.75, 0.55)[index % 3]  # golden angle: no hue comes twice
    red, green, blue = hsv_to_rgb(hue, 0.75, value)
    return round(255 * red), round(255 * green), round(255 * blue)
