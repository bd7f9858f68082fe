// Workers on threads. With OpenMP switched off, none is ever started.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#include <unistd.h>
#endif

namespace blocksparse {

#if defined(_OPENMP)

// A child forked after threads have run inherits none, and GNU OpenMP would wait for them for ever:
// the child works on one.
inline bool threads_were_forked_away() {
    static const pid_t first_user = getpid();
    return getpid() != first_user;
}

inline int most_threads() { return threads_were_forked_away() ? 1 : omp_get_max_threads(); }

template <class Worker>
void on_threads(int threads, const Worker& work) {
    if (threads == 1) return work(0);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; ++thread) work(thread);
}

#else

inline int most_threads() { return 1; }

template <class Worker>
void on_threads(int, const Worker& work) {
    work(0);
}

#endif

}  // namespace blocksparse
