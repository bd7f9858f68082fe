// Runs the kernels without Python on random problems: test_kernel_driver.py compiles it.
//
//     kernel_driver [--problems N] [--seconds T] [--seed S] [--threads T] [--fail-allocations]
//
// Problem k of a run is the one that seed S + k draws. It is worked on by 1 to T threads or, where
// allocations are to fail, for T threads after each allocation in turn has failed. At the end it
// prints, for each kernel, the problems, the largest error as a share of its bound, and how many
// sums were zero: where that is a third of them, nothing was tested.
#include "kernel_problem.hpp"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <new>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <tuple>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#include <sanitizer/common_interface_defs.h>
#endif

std::atomic<long> live_allocations{0}, until_one_fails{0};  // counts down; none fails at zero

// New memory has all bits set: NaNs, so that no result may depend on them.
void* allocate(std::size_t bytes, std::size_t alignment = alignof(std::max_align_t)) {
    if (until_one_fails > 0 && --until_one_fails == 0) throw std::bad_alloc();
    void* memory;
    if (posix_memalign(&memory, alignment, bytes)) throw std::bad_alloc();
    ++live_allocations;
    return std::memset(memory, 0xff, bytes);
}

void release(void* memory) noexcept {
    if (memory) --live_allocations;
    std::free(memory);
}

// All of them: a sanitizer has its own, which do not call each other as the library's do.
using Alignment = std::align_val_t;
void* operator new(std::size_t n) { return allocate(n); }
void* operator new[](std::size_t n) { return allocate(n); }
void* operator new(std::size_t n, Alignment a) { return allocate(n, std::size_t(a)); }
void* operator new[](std::size_t n, Alignment a) { return allocate(n, std::size_t(a)); }
void operator delete(void* memory) noexcept { release(memory); }
void operator delete[](void* memory) noexcept { release(memory); }
void operator delete(void* memory, std::size_t) noexcept { release(memory); }
void operator delete[](void* memory, std::size_t) noexcept { release(memory); }
void operator delete(void* memory, Alignment) noexcept { release(memory); }
void operator delete[](void* memory, Alignment) noexcept { release(memory); }
void operator delete(void* memory, std::size_t, Alignment) noexcept { release(memory); }
void operator delete[](void* memory, std::size_t, Alignment) noexcept { release(memory); }

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    throw std::runtime_error(text.str());
}

// What came of the problems of a kernel; of sums, those that are not of small integers.
struct Record {
    long problems = 0, sums = 0, zeros = 0;
    double largest = 0;

    void add(long double error, long double bound, bool is_zero) {
        largest = std::max(largest, static_cast<double>(error / bound));
        ++sums;
        zeros += is_zero;
    }
};

template <class Kernel>
class Check {
   public:
    Check(const Problem<Kernel>& problem, Record& record)
        : problem(problem), out(problem.out), record(record) {}

    // The output is right, and the same bits for any number of threads.
    void threads(int most) const {
        std::string of_one_thread;
        for (int threads = 1; threads <= most; ++threads) {
            Kernel kernel;
            std::memcpy(out.memory.get(), problem.contents[0].data(), out.bytes);
            expect({}, prepare(kernel, problem.arguments, threads));
            kernel.place(out.array);
            std::vector<std::thread> team;
            for (int thread = 0; thread < kernel.threads(); ++thread)
                team.emplace_back([&kernel, thread] { kernel.work(thread); });
            for (std::thread& thread : team) thread.join();
            if (threads == 1) {
                output();
                of_one_thread = out.contents();
            }
            if (out.contents() != of_one_thread) fail("other bits on ", threads, " threads");
        }
    }

    // An allocation that fails leaves nothing written and nothing allocated.
    void failing_allocations(int threads) const {
        bool enough = false;
        for (long n = 1; !enough; ++n) {
            const long live = live_allocations;
            {
                Kernel kernel;
                Fault fault;
                until_one_fails = n;
                try {
                    fault = prepare(kernel, problem.arguments, threads);
                    enough = true;
                } catch (const std::bad_alloc&) {
                }
                until_one_fails = 0;
                expect({}, fault);
                if (enough) {
                    until_one_fails = 1;  // only prepare() may allocate
                    kernel.place(out.array);
                    for (int thread = 0; thread < kernel.threads(); ++thread) kernel.work(thread);
                    until_one_fails = 0;
                    output();
                }
            }
            if (live != live_allocations) fail("a leak after allocation ", n, " has failed");
        }
    }

    // The gradient is the blocks in use of an outer product on zeros, in the order in which they lie.
    void gradient_of_blocks(int threads) const {
        using T = typename Problem<Kernel>::T;
        const Array& o = problem.arguments[0];
        const i64 size = o.shape[2] * o.shape[3];
        Kernel outer;
        Gradient<T> gradient;
        expect({}, prepare(outer, problem.arguments, threads));
        expect({}, prepare(gradient, problem.arguments, threads));
        const i64 blocks = gradient.blocks();
        std::vector<i64> input(blocks), output(blocks);
        gradient.number_blocks(input.data(), output.data());
        std::vector<T> values = on_zeros(gradient, {blocks, o.shape[2], o.shape[3]});
        std::vector<T> all =
            on_zeros(outer, {o.shape[0], o.shape[1], o.shape[2], o.shape[3]});
        i64 last = -1;
        for (i64 g = 0; g < blocks; ++g) {
            const i64 number = input[g] * o.shape[1] + output[g];
            if (number <= last) fail("block ", number, " stands behind ", last);
            last = number;
            for (i64 k = 0; k < size; ++k) {
                T& expected = all[number * size + k];
                if (std::memcmp(&values[g * size + k], &expected, sizeof expected))
                    fail("a gradient is ", values[g * size + k], " but should be ", expected);
                expected = 0;
            }
        }
        for (T rest : all)
            if (rest != 0) fail("a block in use is missing");
    }

    // Two sizes that must agree and do not.
    void disagreement(Random& random) const {
        const i64 k = random.below(problem.equal_sizes.size());
        const Dimension& dimension = problem.dimensions[problem.equal_sizes[k].other];
        Array changed[Kernel::arguments];
        std::copy(problem.arguments, problem.arguments + Kernel::arguments, changed);
        const i64 size = changed[dimension.argument].shape[dimension.axis]++;
        expect({shape_fault, k, size, size + 1, 0, 0}, prepare(changed));
    }

    // More triples than 64 bits can count.
    void overflow() const {
        Array changed[Kernel::arguments];
        std::copy(problem.arguments, problem.arguments + Kernel::arguments, changed);
        for (const Dimension& dimension : problem.dimensions)
            if (std::strchr("nvw", dimension.letter))
                changed[dimension.argument].shape[dimension.axis] = i64{1} << 31;
        expect({overflow_fault, 0, 0, 0, 0, 0}, prepare(changed));
    }

    void index_out_of_range(Random& random, int argument, i64 blocks) const {
        const Tensor& index = problem.tensors[argument];
        const IndexType& type = problem.types[argument];
        constexpr i64 least = std::numeric_limits<i64>::min();
        const i64 wrong = random.one_of({blocks, -blocks - 1, -1, 127, 255, -128, 65535,
                                         i64{1} << 40, least, -(least + 1)});
        if (index.bytes == 0 || !type.holds(wrong) || type.in_range(wrong, blocks)) return;
        if (problem.padding.is(wrong) || problem.arguments[argument].known.values) return;
        i64 elements_before = random.below(index.array.shape[0] * index.array.shape[1]);
        index.for_each([&](char* address, const i64*) {
            if (elements_before-- == 0) type.store(address, wrong);
        });
        // Which may be several elements, of which the first is told.
        Fault fault;
        index.for_each([&](char* address, const i64* at) {
            const FaultKind kind = type.is_signed ? signed_index : unsigned_index;
            if (!fault && type.load(address) == wrong)
                fault = {kind, argument, at[0], at[1], wrong, blocks};
        });
        expect(fault, prepare(problem.arguments));
        std::memcpy(index.memory.get(), problem.contents[argument].data(), index.bytes);
    }

   private:
    const Problem<Kernel>& problem;
    const Tensor& out;
    Record& record;

    Fault prepare(Kernel& kernel, const Array* arguments, int threads) const {
        return kernel.prepare(arguments, problem.equal_sizes.data(),
                              static_cast<int>(problem.equal_sizes.size()), Thresholds{1}, threads);
    }

    Fault prepare(const Array* arguments) const {
        Kernel kernel;
        return prepare(kernel, arguments, 1);
    }

    // What a kernel makes of zeros without gaps.
    template <class Any>
    static auto on_zeros(Any& kernel, const std::vector<i64>& shape) {
        using T = typename Problem<Kernel>::T;
        Array array;
        i64 count = 1;
        array.ndim = static_cast<int>(shape.size());
        for (int axis = array.ndim - 1; axis >= 0; --axis) {
            array.shape[axis] = shape[axis];
            array.strides[axis] = count * static_cast<i64>(sizeof(T));
            count *= shape[axis];
        }
        std::vector<T> memory(count);
        array.data = reinterpret_cast<char*>(memory.data());
        kernel.place(array);
        for (int thread = 0; thread < kernel.threads(); ++thread) kernel.work(thread);
        return memory;
    }

    // Of a call of prepare(), which must not have written anything.
    void expect(const Fault& expected, const Fault& fault) const {
        const auto fields = [](const Fault& f) {
            return std::tuple(f.kind, f.which, f.first, f.second, f.value, f.size);
        };
        if (fields(fault) != fields(expected))
            fail("prepare() returns fault ", fault.kind, " of ", fault.which, " at ", fault.first,
                 ", ", fault.second, " instead of ", expected.kind, " of ", expected.which, " at ",
                 expected.first, ", ", expected.second);
        if (out.contents() != problem.contents[0]) fail("prepare() writes to the output");
    }

    // Every element is its sum, and nothing else is written, not even between elements.
    void output() const {
        using T = typename Problem<Kernel>::T;
        using Limits = std::numeric_limits<T>;
        const std::vector<Sum> sums = problem.sums();
        auto sum = sums.begin();
        std::string expected = problem.contents[0];
        out.for_each([&](char* address, const i64*) {
            const auto [value, magnitude, terms] = *sum++;
            if (terms == 0) return;
            const T actual = load<T>(address);
            const long double bound =
                (terms + 2) * (2 * Limits::epsilon() * magnitude + Limits::min());
            const long double error = std::fabs(actual - value);
            if (!(error <= (problem.is_exact ? 0 : bound)))
                fail("a sum is ", actual, " but should be ", value);
            if (!problem.is_exact) record.add(error, bound, actual == 0);
            std::memcpy(&expected[address - out.memory.get()], address, sizeof actual);
        });
        if (out.contents() != expected) fail("what is in no sum is written");
        for (int a = 1; a < Kernel::arguments; ++a)
            if (problem.tensors[a].contents() != problem.contents[a]) fail("an input is written");
    }
};

struct Options {
    std::uint64_t seed = 0;
    long problems = 0;   // 0 if not given: one, or as many as fit into the seconds
    double seconds = 0;  // 0 if not given: as long as it takes
    int threads = 3;
    bool fail_allocations = false;
};

Options parse(int count, char** words) {
    Options options;
    for (int k = 1; k < count; ++k) {
        const std::string word = words[k];
        if (word == "--fail-allocations") options.fail_allocations = true;
        else if (k + 1 == count) fail("what is ", word, "?");
        else if (word == "--seed") options.seed = std::stoull(words[++k]);
        else if (word == "--problems") options.problems = std::stol(words[++k]);
        else if (word == "--seconds") options.seconds = std::stod(words[++k]);
        else if (word == "--threads") options.threads = std::stoi(words[++k]);
        else fail("what is ", word, "?");
    }
    if (!options.problems)
        options.problems = options.seconds > 0 ? std::numeric_limits<long>::max() : 1;
    return options;
}

// The command that repeats the current problem. Sanitizers ask for it after all else is destroyed.
std::string& current = *new std::string;

void print_current() { std::fprintf(stderr, "%s\n", current.c_str()); }

using Records = std::map<std::string, Record>;

template <class Kernel>
void check(Random& random, const Options& options, Records& records) {
    const Problem<Kernel> problem(random);
    current += "  # " + problem.words();
    Record& record = records[Op<Kernel>::name];
    ++record.problems;
    const Check<Kernel> check(problem, record);
    if (options.fail_allocations) return check.failing_allocations(options.threads);
    check.disagreement(random);
    check.overflow();
    check.index_out_of_range(random, input_index, problem.sizes.at('i'));
    check.index_out_of_range(random, output_index, problem.sizes.at('j'));
    if constexpr (std::is_same_v<Kernel, Outer<typename Problem<Kernel>::T>>)
        check.gradient_of_blocks(options.threads);
    check.threads(options.threads);
}

void print(const Records& records) {
    for (const auto& [name, record] : records) {
        const double zeros = static_cast<double>(record.zeros) / std::max(record.sums, 1L);
        std::printf("%s: %ld problems, error / bound %.3f, %.1f%% zeros\n", name.c_str(),
                    record.problems, record.largest, 100 * zeros);
        if (zeros > 1. / 3) fail("more than a third of the sums of ", name, " is zero");
    }
}

int main(int count, char** words) try {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    __sanitizer_set_death_callback(print_current);
#endif
    const Options options = parse(count, words);
    constexpr void (*checks[])(Random&, const Options&, Records&) = {
        check<Gemv<float>>,        check<Gemv<double>>,        check<Outer<float>>,
        check<Outer<double>>,      check<DirectGemv<float>>,   check<DirectGemv<double>>,
        check<DirectOuter<float>>, check<DirectOuter<double>>, check<DirectGemv<float, true>>,
        check<DirectGemv<double, true>>, check<DirectOuter<float, true>>,
        check<DirectOuter<double, true>>};
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    const auto is_over = [&] {
        const std::chrono::duration<double> taken = Clock::now() - start;
        return options.seconds > 0 && taken.count() > options.seconds;
    };
    Records records;
    long k = 0;
    for (; k < options.problems && !is_over(); ++k) {
        const std::uint64_t seed = options.seed + static_cast<std::uint64_t>(k);
        current = "kernel_driver --seed " + std::to_string(seed) + " --threads " +
                  std::to_string(options.threads) +
                  (options.fail_allocations ? " --fail-allocations" : "");
        Random random(seed);
        checks[random.below(std::size(checks))](random, options, records);
    }
    std::printf("%ld problems\n", k);
    current = "kernel_driver";
    print(records);
} catch (const std::exception& error) {
    print_current();
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
