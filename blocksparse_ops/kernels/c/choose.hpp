// Which path a call takes. The thresholds are written in kernels/thresholds.py, with how they were measured.
#pragma once

#include "arrays.hpp"

namespace blocksparse {

struct Thresholds {
    i64 planned_reuse;  // from this many triples a block on, sorting by block pays
};

// The number of blocks in use is not known before sorting; all blocks, or a triple for each, bound it.
inline bool sorting_pays(i64 triples, i64 iBlocks, i64 oBlocks, const Thresholds& thresholds) {
    i64 blocks;
    if (__builtin_mul_overflow(iBlocks, oBlocks, &blocks)) return false;
    return triples / thresholds.planned_reuse >= blocks;
}

}  // namespace blocksparse
