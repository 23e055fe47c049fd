"""An order of any number of samples that needs no memory: a keyed permutation, computed place by place."""

_ROUNDS = 6
_MASK = (1 << 64) - 1


class Permutation:
    """A pseudo-random permutation of 0 to count - 1; `permutation[place]` is computed, not looked up.

    It is a Feistel network over the next power of four, whose outputs beyond the count go through it again until they
    lie below (cycle walking; Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, section 4).
    """

    def __init__(self, count: int, key: int) -> None:
        """Permute `count` numbers by a key."""
        self.count = count
        self._half = max(1, -(-(count - 1).bit_length() // 2))
        self._keys = [_mixed(_mixed(key & _MASK) + number) for number in range(_ROUNDS)]

    def __len__(self) -> int:
        """Count the numbers."""
        return self.count

    def __getitem__(self, place: int) -> int:
        """Return the number at a place.

        Raises:
            IndexError: beyond the last place.
        """
        if not 0 <= place < self.count:
            raise IndexError(f"place {place} of {self.count}")
        value = self._through(place)
        while value >= self.count:
            value = self._through(value)
        return value

    def _through(self, value: int) -> int:
        below = (1 << self._half) - 1
        left, right = value >> self._half, value & below
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & below)
        return left << self._half | right


def _mixed(value: int) -> int:
    """The finaliser of SplitMix64: every bit of the result depends on every bit of the value."""
    value = value + 0x9E3779B97F4A7C15 & _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31
