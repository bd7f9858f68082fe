// o[b, w] += sum_v h[b, v] @ W[inputIdx[b, v], outputIdx[b, w]]
#pragma once

#include "check.hpp"
#include "choose.hpp"
#include "plan.hpp"
#include "tile.hpp"

namespace blocksparse {

template <class T>
class Gemv {
   public:
    static constexpr int arguments = 5;  // o, W, h, inputIdx, outputIdx

    // Checks, plans and takes all the memory that run() needs. Writes nothing of the caller's.
    Fault prepare(const Array* args, const Agreement* agreements, int agreement_count,
                  const Thresholds& thresholds) {
        W = args[1];
        h = args[2];
        batch = h.shape[0], inputs = h.shape[1], outputs = args[0].shape[1];
        const i64 iBlocks = W.shape[0], oBlocks = W.shape[1];
        if (Fault fault = check(args, arguments, agreements, agreement_count, batch, inputs,
                                outputs, iBlocks, oBlocks, indices))
            return fault;
        plan = make_plan(indices.input, indices.output, batch, inputs, outputs, iBlocks, oBlocks);
        by_block = going_by_block_pays(batch * inputs * outputs, plan.groups(), thresholds);
        panel.resize(panel_size<T>);
        h_rows.reserve(batch * inputs);
        out_rows.reserve(batch * outputs);
        h_rows.locate(h);
        return {};
    }

    // `out` holds the initial values.
    void run(const Array& out) {
        out_rows.locate(out);
        if (by_block)
            run_planned(out);
        else
            run_direct(out);
    }

   private:
    Array W, h;
    i64 batch, inputs, outputs;
    Indices indices;
    bool by_block;
    Plan plan;
    std::vector<T> panel;
    Rows h_rows, out_rows;

    const char* block(i64 i, i64 j) const {
        return W.data + i * W.strides[0] + j * W.strides[1];
    }

    // Calls use(right) with right(k) the k-th row from k0 on of a block's columns n0 to n0 + columns.
    template <class Use>
    void with_block(const char* block, i64 k0, i64 depth, i64 n0, i64 columns, i64 width,
                    const Use& use) {
        const char* corner = block + k0 * W.strides[2] + n0 * W.strides[3];
        const i64 step = W.strides[2];
        with_panel(panel.data(), depth, [=](i64 k) { return corner + k * step; }, W.strides[3],
                   columns, width, use);
    }

    // Block by block, so that each is read once for all the rows that use it.
    void run_planned(const Array& out) {
        for (i64 g = 0; g < plan.groups(); ++g) {
            const char* weights = block(plan.input_block[g], plan.output_block[g]);
            const i64 first = plan.start[g], rows = plan.start[g + 1] - first;
            for_each_panel<T>(W.shape[3], [&](auto vectors, i64 n0, i64 columns) {
                constexpr int NV = decltype(vectors)::value;
                for_each_chunk(W.shape[2], [&](i64 k0, i64 depth) {
                    with_block(weights, k0, depth, n0, columns, NV * Vector<T>::lanes,
                               [&](const auto& right) {
                                   for_each_tile(rows, [&](auto rows_here, i64 r) {
                                       multiply<decltype(rows_here)::value, NV>(out, first + r, k0, depth, n0,
                                                                    columns, right);
                                   });
                               });
                });
            });
        }
    }

    template <int rows, int vectors, class Right>
    void multiply(const Array& out, i64 t, i64 k0, i64 depth, i64 n0, i64 columns,
                  const Right& right) const {
        const i64 step = h.strides[2];
        const char* left[rows];
        for (int m = 0; m < rows; ++m) left[m] = h_rows[plan.input_row[t + m]] + k0 * step;
        Tile<T, rows, vectors> tile;
        tile.accumulate(depth, [&](int m, i64 k) { return load<T>(left[m] + k * step); }, right);
        tile.add([&](int m) { return out_rows[plan.output_row[t + m]] + n0 * out.strides[2]; },
                 out.strides[2], columns, T(1));
    }

    // Output row by output row, the sum over the whole input window in registers.
    void run_direct(const Array& out) {
        const i64 step = h.strides[2];
        for (i64 row = 0; row < batch * outputs; ++row) {
            const i64 first = row / outputs * inputs;
            for_each_panel<T>(W.shape[3], [&](auto vectors, i64 n0, i64 columns) {
                constexpr int NV = decltype(vectors)::value;
                Tile<T, 1, NV> tile;
                for (i64 input = first; input < first + inputs; ++input) {
                    const char* weights = block(indices.input[input], indices.output[row]);
                    for_each_chunk(W.shape[2], [&](i64 k0, i64 depth) {
                        const char* left = h_rows[input] + k0 * step;
                        with_block(weights, k0, depth, n0, columns, NV * Vector<T>::lanes,
                                   [&](const auto& right) {
                                       tile.accumulate(
                                           depth,
                                           [&](int, i64 k) { return load<T>(left + k * step); },
                                           right);
                                   });
                    });
                }
                tile.add([&](int) { return out_rows[row] + n0 * out.strides[2]; },
                         out.strides[2], columns, T(1));
            });
        }
    }
};

}  // namespace blocksparse
