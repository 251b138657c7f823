"""Two orders that C++ leaves open and libstdc++ settles: of an unordered_map of strings, and of equals in a sort.

llama.cpp's choice among special tokens depends on both (see token_attributes.py); other C++ libraries have other
orders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

_MASK = (1 << 64) - 1
_MULTIPLIER, _SEED = 0xC6A4A7935BD1E995, 0xC70F6907
_FEW = 16  # stl_algo.h: _S_threshold
# Numbers of buckets as a map grows by one key at a time (hashtable_c++0x.cc: _Prime_rehash_policy).
_BUCKETS = (
    *(13, 29, 59, 127, 257, 541, 1109, 2357, 5087, 10273, 20753, 42043, 85229, 172933, 351061, 712697),
    *(1447153, 2938679, 5967347),
)


def first_in_hash_order(keys: Sequence[str], wanted: Iterable[str]) -> str:
    """Which of the wanted keys comes first in a map that got `keys` in their order."""
    among = set(wanted)
    return next(keys[i] for i in _walk(keys) if keys[i] in among)


def _walk(keys: Sequence[str]) -> list[int]:
    """Positions in `keys` in the order of the map (hashtable.h: _M_insert_bucket_begin, _M_rehash_aux)."""
    hashes = [hash_bytes(key.encode("utf-8", "surrogateescape")) for key in keys]
    sizes = iter(_BUCKETS)
    after: list[int] = [-1] * len(keys)
    head, n_bucket, before = (
        -1,
        1,
        {},
    )  # before: bucket → the node in front of its first, -2 for the list's head

    def link(node: int) -> None:
        nonlocal head
        bucket = hashes[node] % n_bucket
        if bucket not in before:
            after[node], head = head, node
            if after[node] >= 0:
                before[hashes[after[node]] % n_bucket] = node
            before[bucket] = -2
        elif before[bucket] == -2:
            after[node], head = head, node
        else:
            after[node], after[before[bucket]] = after[before[bucket]], node

    def rehash() -> None:
        nonlocal head, before
        node, head, before = head, -1, {}
        first = 0
        while node >= 0:
            following, bucket = after[node], hashes[node] % n_bucket
            if bucket not in before:
                after[node], head = head, node
                before[bucket] = -2
                if after[node] >= 0:
                    before[first] = node
                first = bucket
            elif before[bucket] == -2:
                after[node], head = head, node
            else:
                after[node], after[before[bucket]] = after[before[bucket]], node
            node = following

    limit = 0
    for node in range(len(keys)):
        if node + 1 > limit:
            n_bucket = limit = next(sizes)
            rehash()
        link(node)
    out = []
    while head >= 0:
        out.append(head)
        head = after[head]
    return out


def hash_bytes(raw: bytes) -> int:
    """std::hash of a string: MurmurHash64A with libstdc++'s seed (hash_bytes.cc)."""
    state = _SEED ^ (len(raw) * _MULTIPLIER & _MASK)
    whole = len(raw) & ~7
    for at in range(0, whole, 8):
        word = int.from_bytes(raw[at : at + 8], "little") * _MULTIPLIER & _MASK
        word = (word ^ word >> 47) * _MULTIPLIER & _MASK
        state = (state ^ word) * _MULTIPLIER & _MASK
    if whole < len(raw):
        state = (state ^ int.from_bytes(raw[whole:], "little")) * _MULTIPLIER & _MASK
    state = (state ^ state >> 47) * _MULTIPLIER & _MASK
    return state ^ state >> 47


def sorted_as_std_sort(items: Sequence[int], key: Callable[[int], int]) -> list[int]:
    """The items by their key as std::sort orders them, equals included (stl_algo.h: __introsort_loop).

    The heap sort that takes over where quicksort goes too deep is left out: with medians of three it takes a
    vocabulary made for the purpose.
    """
    out = [(key(item), item) for item in items]
    _quicksort(out, 0, len(out))
    for i in range(1, len(out)):  # __final_insertion_sort moves an item only past greater ones
        item, at = out[i], i
        while at and item[0] < out[at - 1][0]:
            out[at] = out[at - 1]
            at -= 1
        out[at] = item
    return [item for _, item in out]


def _quicksort(out: list[tuple[int, int]], first: int, last: int) -> None:
    """Parts until each has at most _FEW items (__unguarded_partition_pivot)."""
    while last - first > _FEW:
        middle = first + (last - first) // 2
        pivot = _median(out, first + 1, middle, last - 1)
        out[first], out[pivot] = out[pivot], out[first]
        left, right = first + 1, last
        while True:
            while out[left][0] < out[first][0]:
                left += 1
            right -= 1
            while out[first][0] < out[right][0]:
                right -= 1
            if left >= right:
                break
            out[left], out[right] = out[right], out[left]
            left += 1
        _quicksort(out, left, last)
        last = left


def _median(out: list[tuple[int, int]], a: int, b: int, c: int) -> int:
    """Which of three positions holds the middle key; which of equal ones is __move_median_to_first's."""
    x, y, z = out[a][0], out[b][0], out[c][0]
    if x < y:
        return b if y < z else c if x < z else a
    return a if x < z else c if y < z else b
