//! What this machine can do at most: f32 arithmetic in registers, and reading
//! memory. A step's *share* of its roofline is the time that its operations and
//! bytes take at those rates, whichever is longer, over the time that it took.
//!
//! A share may exceed 1: bytes that lie in a cache come faster than from memory,
//! integer instructions do more operations than the f32 ones that are measured, and a
//! convolution by Winograd is counted in the direct form's operations.

use std::arch::x86_64::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Independent chains: a fused multiply-add takes 4 or 5 cycles, and two start each.
const CHAINS: usize = 12;
/// Iterations of the loop that one measurement runs: about 5 ms.
const ITERATIONS: i64 = 1 << 20;
/// Each rate is the best of so many measurements.
const ROUNDS: usize = 5;

/// A loop of fused multiply-adds in registers.
pub struct FmaLoop {
    /// Who made its code, for reports.
    pub made_by: &'static str,
    /// Floating-point operations of one iteration.
    pub flops: f64,
    /// Runs this many iterations on the calling thread.
    pub run: Box<dyn Fn(i64) + Sync>,
}

impl FmaLoop {
    /// A loop of the runtime's own, with the widest registers of this machine; none
    /// where it has no fused multiply-add.
    pub fn of_runtime() -> Option<FmaLoop> {
        let made_by = "a loop of the runtime's own";
        if std::arch::is_x86_feature_detected!("avx512f") {
            return Some(FmaLoop {
                made_by,
                flops: (2 * CHAINS * 16) as f64,
                // SAFETY: the machine has AVX-512F.
                run: Box::new(|n| unsafe { fma_512(n) }),
            });
        }
        let has = std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma");
        has.then(|| FmaLoop {
            made_by,
            flops: (2 * CHAINS * 8) as f64,
            // SAFETY: the machine has AVX2 and FMA.
            run: Box::new(|n| unsafe { fma_256(n) }),
        })
    }
}

/// A loop over [`CHAINS`] named sums: an array of them stayed in memory where code is
/// compiled for size, at half the rate.
macro_rules! fma_loop {
    ($name:ident, $feature:literal, $set:ident, $fma:ident, $add:ident) => {
        #[target_feature(enable = $feature)]
        fn $name(iterations: i64) {
            let (x, y) = ($set(1.000_001), $set(1e-9));
            fma_loop!(@sums iterations, x, y, $set, $fma, $add: a b c d e f g h i j k l)
        }
    };
    (@sums $n:ident, $x:ident, $y:ident, $set:ident, $fma:ident, $add:ident: $($sum:ident)*) => {{
        const { assert!(CHAINS == [$(stringify!($sum)),*].len()) };
        // Unknown to the compiler, so that no sum equals another.
        $(let mut $sum = $set(std::hint::black_box(0.5));)*
        for _ in 0..$n {
            $($sum = $fma($sum, $x, $y);)*
        }
        let mut total = $y;
        $(total = $add(total, $sum);)*
        std::hint::black_box(total);
    }};
}

fma_loop!(
    fma_512,
    "avx512f",
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    _mm512_add_ps
);
fma_loop!(
    fma_256,
    "avx2,fma",
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    _mm256_add_ps
);

/// The sum of 64-bit words, read 16 bytes at a time into four sums: what every x86-64
/// has, and several times faster than memory.
fn read(words: &[u64]) {
    // SAFETY: SSE2 is part of x86-64, and every load lies inside its chunk of 64 bytes.
    unsafe {
        let zero = _mm_setzero_si128();
        let (mut a, mut b, mut c, mut d) = (zero, zero, zero, zero);
        for chunk in words.chunks_exact(8) {
            let at = chunk.as_ptr().cast::<__m128i>();
            a = _mm_add_epi64(a, _mm_loadu_si128(at));
            b = _mm_add_epi64(b, _mm_loadu_si128(at.add(1)));
            c = _mm_add_epi64(c, _mm_loadu_si128(at.add(2)));
            d = _mm_add_epi64(d, _mm_loadu_si128(at.add(3)));
        }
        std::hint::black_box((a, b, c, d));
    }
}

/// The rates of so many threads at once.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Roofline {
    /// 10^9 f32 operations a second in fused multiply-adds, of all threads together.
    pub fma_gflops: f64,
    /// 10^9 bytes a second read from memory by all threads together.
    pub read_gb_s: f64,
    /// How many threads.
    pub threads: usize,
    /// Who made the code of the arithmetic loop.
    pub fma_loop: &'static str,
}

impl Roofline {
    /// Measures: about 0.3 s, and four times the last cache's size of memory.
    pub fn measure(fma: &FmaLoop, threads: usize) -> Roofline {
        let threads = threads.max(1);
        let flops = fma.flops * ITERATIONS as f64;
        let fma_gflops = flops * rate(threads, ROUNDS, &|_| (fma.run)(ITERATIONS)) / 1e9;
        // Written, or all of it would be one page of zeros.
        let words = vec![1u64; memory_bytes() / 8];
        let part = words.len() / threads;
        let reads = rate(threads, ROUNDS, &|t| read(&words[t * part..(t + 1) * part]));
        Roofline {
            fma_gflops,
            read_gb_s: (part * 8) as f64 * reads / 1e9,
            threads,
            fma_loop: fma.made_by,
        }
    }

    /// The share of the roofline that `flops` operations and `bytes` bytes in `ns`
    /// nanoseconds are, and which of the two takes longer.
    pub fn share(&self, flops: i64, bytes: i64, ns: u64) -> (f64, &'static str) {
        // GFLOP/s and GB/s are operations and bytes a nanosecond.
        let arithmetic = flops as f64 / self.fma_gflops;
        let memory = bytes as f64 / self.read_gb_s;
        let bound = if arithmetic >= memory {
            "arithmetic"
        } else {
            "memory"
        };
        (arithmetic.max(memory) / ns.max(1) as f64, bound)
    }
}

/// Parts of work a second, one part a thread, in the fastest round: from a common start
/// to the last thread's end. A machine that cannot start a thread has fewer of them.
pub(crate) fn rate(threads: usize, rounds: usize, work: &(dyn Fn(usize) + Sync)) -> f64 {
    let round = || {
        let open = AtomicBool::new(false);
        let ended = |t: usize| {
            while !open.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            work(t);
            Instant::now()
        };
        std::thread::scope(|s| {
            let begin = |t| std::thread::Builder::new().spawn_scoped(s, move || ended(t));
            let others: Vec<_> = (1..threads).filter_map(|t| begin(t).ok()).collect();
            let start = Instant::now();
            open.store(true, Ordering::Release);
            let own = ended(0);
            // A thread that panicked measured nothing.
            let ends: Vec<Instant> = others.into_iter().filter_map(|h| h.join().ok()).collect();
            let parts = (ends.len() + 1) as f64;
            let last = ends.into_iter().fold(own, Instant::max);
            parts / (last - start).as_secs_f64()
        })
    };
    (0..rounds).map(|_| round()).fold(0.0, f64::max)
}

/// Four times the last cache, 64 MiB at least and 512 at most.
fn memory_bytes() -> usize {
    let cache = "/sys/devices/system/cpu/cpu0/cache/index3/size";
    let text = std::fs::read_to_string(cache).unwrap_or_default();
    let kib = text.trim().trim_end_matches('K').parse::<usize>();
    (kib.unwrap_or(32 << 10).saturating_mul(4 << 10)).clamp(64 << 20, 512 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_the_longer_time_over_the_taken_one() {
        let r = Roofline {
            fma_gflops: 100.0,
            read_gb_s: 10.0,
            threads: 1,
            fma_loop: "",
        };
        assert_eq!(r.share(5_000, 100, 100), (0.5, "arithmetic"));
        assert_eq!(r.share(5_000, 1_000, 200), (0.5, "memory"));
        assert_eq!(r.share(0, 0, 0), (0.0, "arithmetic"));
    }

    /// The loop is not optimised away: no machine does 100 operations a lane a cycle.
    #[test]
    fn rates_are_possible() {
        let Some(fma) = FmaLoop::of_runtime() else {
            return;
        };
        let r = Roofline::measure(&fma, 2);
        assert!(r.fma_gflops > 1.0 && r.fma_gflops < 2_000.0, "{r:?}");
        assert!(r.read_gb_s > 0.1 && r.read_gb_s < 2_000.0, "{r:?}");
    }
}
