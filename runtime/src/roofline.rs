//! What this machine can do at most: f32 arithmetic in registers, and reading
//! memory. A step's *share* of its roofline is the time that its operations and
//! bytes take at those rates, whichever is longer, over the time that it took.
//!
//! A share may exceed 1: bytes that lie in a cache come faster than from memory,
//! integer instructions do more operations than the f32 ones that are measured, and a
//! convolution by Winograd is counted in the direct form's operations.

use std::arch::x86_64::*;
use std::sync::Barrier;
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

#[target_feature(enable = "avx512f")]
fn fma_512(iterations: i64) {
    let (x, y) = (_mm512_set1_ps(1.000_001), _mm512_set1_ps(1e-9));
    let mut acc: [__m512; CHAINS] = std::array::from_fn(|i| _mm512_set1_ps(i as f32));
    for _ in 0..iterations {
        acc.iter_mut().for_each(|a| *a = _mm512_fmadd_ps(*a, x, y));
    }
    let sum = acc.into_iter().fold(y, |s, a| _mm512_add_ps(s, a));
    std::hint::black_box(_mm512_reduce_add_ps(sum));
}

#[target_feature(enable = "avx2,fma")]
fn fma_256(iterations: i64) {
    let (x, y) = (_mm256_set1_ps(1.000_001), _mm256_set1_ps(1e-9));
    let mut acc: [__m256; CHAINS] = std::array::from_fn(|i| _mm256_set1_ps(i as f32));
    for _ in 0..iterations {
        acc.iter_mut().for_each(|a| *a = _mm256_fmadd_ps(*a, x, y));
    }
    let sum = acc.into_iter().fold(y, |s, a| _mm256_add_ps(s, a));
    std::hint::black_box(_mm256_cvtss_f32(sum));
}

/// The sum of 64-bit words, read 16 bytes at a time into eight sums: what every
/// x86-64 has, and several times faster than memory.
fn read(words: &[u64]) {
    // SAFETY: SSE2 is part of x86-64, and every load lies inside its chunk.
    unsafe {
        let mut sums = [_mm_setzero_si128(); 8];
        for chunk in words.chunks_exact(16) {
            for (i, s) in sums.iter_mut().enumerate() {
                let at = chunk.as_ptr().add(2 * i).cast();
                *s = _mm_add_epi64(*s, _mm_loadu_si128(at));
            }
        }
        std::hint::black_box(sums);
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
        let flops = fma.flops * ITERATIONS as f64 * threads as f64;
        let fma_gflops = flops / fastest(threads, &|_| (fma.run)(ITERATIONS)) / 1e9;
        // Written, or all of it would be one page of zeros.
        let words = vec![1u64; memory_bytes() / 8];
        let part = words.len() / threads;
        let seconds = fastest(threads, &|t| read(&words[t * part..(t + 1) * part]));
        Roofline {
            fma_gflops,
            read_gb_s: (part * threads * 8) as f64 / seconds / 1e9,
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

/// Seconds of the fastest round, from a common start to the last thread's end.
fn fastest(threads: usize, work: &(dyn Fn(usize) + Sync)) -> f64 {
    let round = || {
        let gate = Barrier::new(threads);
        let timed = |t: usize| {
            gate.wait();
            let start = Instant::now();
            work(t);
            start.elapsed().as_secs_f64()
        };
        std::thread::scope(|s| {
            let others: Vec<_> = (1..threads).map(|t| s.spawn(move || timed(t))).collect();
            let own = timed(0);
            // A thread that panicked measured nothing.
            others
                .into_iter()
                .filter_map(|h| h.join().ok())
                .fold(own, f64::max)
        })
    };
    (0..ROUNDS).map(|_| round()).fold(f64::MAX, f64::min)
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
