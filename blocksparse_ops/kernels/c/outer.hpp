// o[xIdx[b, v], yIdx[b, w]] += alpha * outer(x[b, v], y[b, w])
#pragma once

#include "check.hpp"
#include "choose.hpp"
#include "plan.hpp"
#include "tile.hpp"

namespace blocksparse {

template <class T>
class Outer {
   public:
    static constexpr int arguments = 6;  // o, x, y, xIdx, yIdx, alpha

    // Checks, plans and takes all the memory that run() needs. Writes nothing of the caller's.
    Fault prepare(const Array* args, const Agreement* agreements, int agreement_count,
                  const Thresholds&) {
        x = args[1];
        y = args[2];
        alpha = load<T>(args[5].data);
        const i64 batch = x.shape[0], iBlocks = args[0].shape[0], oBlocks = args[0].shape[1];
        const i64 inputs = x.shape[1], outputs = y.shape[1];
        Indices indices;
        if (Fault fault = check(args, arguments, agreements, agreement_count, batch, inputs,
                                outputs, iBlocks, oBlocks, indices))
            return fault;
        plan = make_plan(indices.input, indices.output, batch, inputs, outputs, iBlocks, oBlocks);
        panel.resize(panel_size<T>);
        x_rows.reserve(batch * inputs);
        y_rows.reserve(batch * outputs);
        x_rows.locate(x);
        y_rows.locate(y);
        return {};
    }

    // `out` holds the initial values.
    void run(const Array& out) {
        for (i64 g = 0; g < plan.groups(); ++g) {
            char* block = out.data + plan.input_block[g] * out.strides[0] +
                          plan.output_block[g] * out.strides[1];
            for_each_panel<T>(out.shape[3], [&](auto vectors, i64 n0, i64 columns) {
                constexpr int NV = decltype(vectors)::value;
                for_each_chunk(plan.start[g + 1] - plan.start[g], [&](i64 first, i64 depth) {
                    const i64* output_row = &plan.output_row[plan.start[g] + first];
                    with_panel(
                        panel.data(), depth,
                        [&](i64 k) { return y_rows[output_row[k]] + n0 * y.strides[2]; }, y.strides[2],
                        columns, NV * Vector<T>::lanes, [&](const auto& right) {
                            for_each_tile(out.shape[2], [&](auto rows_here, i64 m0) {
                                add_outer<decltype(rows_here)::value, NV>(
                                    out, block + m0 * out.strides[2] + n0 * out.strides[3], m0,
                                    &plan.input_row[plan.start[g] + first], depth, columns, right);
                            });
                        });
                });
            });
        }
    }

   private:
    Array x, y;
    T alpha;
    Plan plan;
    std::vector<T> panel;
    Rows x_rows, y_rows;

    template <int rows, int vectors, class Right>
    void add_outer(const Array& out, char* corner, i64 m0, const i64* input_row, i64 depth,
                   i64 columns, const Right& right) const {
        Tile<T, rows, vectors> tile;
        tile.accumulate(
            depth,
            [&](int m, i64 k) { return load<T>(x_rows[input_row[k]] + (m0 + m) * x.strides[2]); },
            right);
        tile.add([&](int m) { return corner + m * out.strides[2]; }, out.strides[3], columns,
                 alpha);
    }
};

}  // namespace blocksparse
