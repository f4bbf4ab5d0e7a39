"""The Triton kernel of tables; importing it needs Triton."""

import triton
import triton.language as tl

CHUNK = tl.constexpr(65536)
"""Elements that one program handles; torch's foreach kernels have as many."""

BLOCK = tl.constexpr(2048)
"""Elements that are loaded at once: with 8 warps, 8 per thread."""

DTYPES = {
    f"torch.{name}": getattr(tl, name)
    for name in ("float32", "bfloat16", "float16", "float64")
}


@triton.jit(do_not_specialize=["rows", "number"])
def clip_kernel(table, rows, number, T: tl.constexpr, CLAMPS: tl.constexpr):
    """Multiplies tensors by a number, or clamps them, one chunk a program.

    Args:
        table: Pointer to int64: the addresses of the tensors, then for each of
            them the chunks before it, then its elements; `rows` of each.
        rows: How many tensors.
        number: Pointer to the coefficient, of any floating dtype, or to the
            bound of float64.
        T: The dtype of the tensors.
        CLAMPS: Whether to clamp.
    """
    # The dtype in which torch computes.
    WIDE: tl.constexpr = tl.float64 if T == tl.float64 else tl.float32
    value = tl.load(number).to(WIDE)
    needed = True
    if not CLAMPS:
        # torch rounds the coefficient to the dtype of the gradients.
        rounded = value.to(T)
        value = rounded.to(WIDE)
        if T == tl.bfloat16:
            # Hidden from LLVM, which would multiply by HMUL2.BF16. That rounds
            # subnormals in another way than torch's product in float32.
            bits = rounded.to(tl.int16, bitcast=True).to(tl.int32) << 16
            value = bits.to(tl.float32, bitcast=True)
        needed = (value < 1) | (value != value)
    if needed:
        chunk = tl.program_id(0).to(tl.int64)
        row = 0
        end = rows
        while end - row > 1:  # The last row that begins at or before it.
            middle = (row + end) // 2
            if tl.load(table + rows + middle) <= chunk:
                row = middle
            else:
                end = middle
        start = (chunk - tl.load(table + rows + row)) * CHUNK
        left = tl.load(table + 2 * rows + row) - start
        count = tl.minimum(left, CHUNK).to(tl.int32)
        address = tl.load(table + row) + start * (T.primitive_bitwidth // 8)
        data = address.to(tl.pointer_type(T))
        steps = tl.arange(0, BLOCK)
        whole = 0
        if address % 16 == 0:  # Then 16 bytes at once, without a mask.
            aligned = tl.multiple_of(data, 16)
            whole = count // BLOCK * BLOCK
            for at in range(0, whole, BLOCK):
                here = aligned + at + steps
                found = tl.load(here).to(WIDE)
                tl.store(here, _clipped(found, value, T, CLAMPS))
        for at in range(whole, count, BLOCK):
            here = data + at + steps
            live = at + steps < count
            found = tl.load(here, live).to(WIDE)
            tl.store(here, _clipped(found, value, T, CLAMPS), live)


@triton.jit
def _clipped(found, value, T: tl.constexpr, CLAMPS: tl.constexpr):
    if CLAMPS:
        # ForeachMinMaxFunctors.cuh, whose first pass rounds to T.
        keeps = (found != found) | (found > -value)
        low = tl.where(keeps, found, -value).to(T).to(found.dtype)
        keeps = (low != low) | (low < value)
        return tl.where(keeps, low, value).to(T)
    return (found * value).to(T)
