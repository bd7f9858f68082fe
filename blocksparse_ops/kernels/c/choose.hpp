// Which path a call takes. kernels/thresholds.py sets the thresholds.
#pragma once

#include "arrays.hpp"

namespace blocksparse {

struct Thresholds {
    i64 planned_reuse;  // from this many triples a block in use on, going block by block pays
};

// What the blocks in use are is known only from the plan, and the blocks that are not must not
// matter. A plan costs little beside the products of its triples.
inline bool going_by_block_pays(i64 triples, i64 groups, const Thresholds& thresholds) {
    return triples / thresholds.planned_reuse >= groups;
}

}  // namespace blocksparse
