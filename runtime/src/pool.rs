//! The thread pool: workers that spin briefly and then park.
//!
//! A dispatch to spinning workers costs about 0.1 µs, to parked ones a futex
//! wake of 40 µs: so workers spin for a while after each job. They offer their core
//! now and then in that time, and park at once if somebody else had work for it.
//!
//! **Each thread begins with its own part of the units**, the same part of every job, so
//! that what it reads of one step's results is what it wrote and still has in its cache. It
//! takes grains of it, fewer at a time towards the end, and then of the others' parts, so
//! that threads end together; which thread runs which unit never changes a result, since
//! units write disjoint memory.
//!
//! **Runs at once share the processors.** Two sessions of two threads on two
//! processors, both running, are better off with one thread each than with four
//! that wait for each other: [`Busy`] counts the runs, and a job is opened to no
//! more workers than its part of the processors.
//!
//! **The caller waits only for workers that have joined the job.** A worker that
//! the system has taken off its core joins late or not at all; by then the
//! caller has done the units itself and closed the job. Waiting for every worker
//! cost a scheduler's time slice (3 ms) a launch on a loaded machine: 18 ms
//! instead of 0.14 for a small model of six launches.

use crate::error::Result;
use crate::threads::{available, pin};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a worker looks for work before it parks: 2 ms where a pause takes 33 ns.
/// With a third of it, workers parked between runs of a small model now and then, and
/// one of 0.20 ms took up to 0.28.
const SPINS: u32 = 60_000;

/// How often it looks before it offers its core once: 70 µs, longer than the gap between
/// two launches. Seldom, because the system takes a whole time slice from who offers.
const PATIENCE: u32 = 2_000;

/// A core that comes back later than this had other work: the worker parks.
const WANTED: Duration = Duration::from_micros(20);

/// How often the caller looks whether the joined workers are done before it
/// offers its core: one of them may be waiting for just that core.
const CALLER_SPINS: u32 = 2_000;

/// A job: `run(thread, begin, end) -> status` over disjoint ranges.
type Job<'a> = &'a (dyn Fn(usize, i64, i64) -> i32 + Sync);

/// `Shared::state` is `epoch << 32 | OPEN | joined`: one word, so that a worker
/// joins a job only while that very job is open.
const OPEN: u64 = 1 << 31;
const JOINED: u64 = OPEN - 1;
const EPOCH: u32 = 32;

struct Shared {
    /// Number of the newest job, whether workers may join it, and how many work
    /// on it. The fields below it are written only while nobody has joined.
    state: AtomicU64,
    /// The job, as two words; valid for a worker from joining to leaving.
    job: [AtomicUsize; 2],
    /// The threads' parts of the units.
    parts: Box<[Part]>,
    /// How many workers may join the job.
    guests: AtomicU64,
    status: AtomicI32,
    stop: AtomicBool,
    parked: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

/// Units that one thread begins with: from `next` on to `end`. Alone in its cache line.
#[repr(align(64))]
#[derive(Default)]
struct Part {
    next: AtomicI64,
    end: AtomicI64,
}

/// A pool of threads, the caller's included.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// The processor that is meant for the caller's thread.
    caller: Option<usize>,
    /// Processors that runs of this process share; none: this pool has its own.
    processors: Option<usize>,
}

/// Runs of this process that are going on: what is counted are processors' users, which
/// no session knows alone. It changes who computes, never what.
static BUSY: AtomicUsize = AtomicUsize::new(0);

/// A run that is going on, until this is dropped.
pub struct Busy(());

impl Busy {
    /// One more.
    pub fn begin() -> Busy {
        BUSY.fetch_add(1, Ordering::Relaxed);
        Busy(())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    /// A pool of `threads` threads (at least one: the caller), each pinned to the
    /// processor of its place if there are places. The caller pins its own. `own`: no
    /// other pool uses those processors.
    pub fn new(threads: usize, places: Option<&[usize]>, own: bool) -> Result<Pool> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: [AtomicUsize::new(0), AtomicUsize::new(0)],
            parts: (0..threads.max(1)).map(|_| Part::default()).collect(),
            guests: AtomicU64::new(0),
            status: AtomicI32::new(0),
            stop: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut pool = Pool {
            shared,
            workers: vec![],
            caller: places.and_then(|p| p.first().copied()),
            processors: (!own).then(available),
        };
        let (tell, told) = std::sync::mpsc::channel();
        for index in 1..threads.max(1) {
            let (shared, tell) = (pool.shared.clone(), tell.clone());
            let place = places.and_then(|p| p.get(index).copied());
            let work = move || {
                // Pinned as long as the guard lives: all of the thread's life.
                let pinned = place.map(pin).transpose();
                let (_guard, error) = match pinned {
                    Ok(guard) => (guard, None),
                    Err(e) => (None, Some(e)),
                };
                let ready = error.is_none();
                // Who waits for it may have given up.
                let _ = tell.send(error);
                drop(tell);
                if ready {
                    worker(&shared, index);
                }
            };
            let name = format!("kiln-{index}");
            // A machine that cannot start a thread gets a smaller pool.
            let started = std::thread::Builder::new().name(name).spawn(work);
            pool.workers.extend(started);
        }
        if places.is_some() {
            drop(tell);
            if let Some(error) = told.into_iter().flatten().next() {
                return Err(error);
            }
        }
        Ok(pool)
    }

    /// The processor that is meant for the caller's thread, if threads are pinned.
    pub fn caller(&self) -> Option<usize> {
        self.caller
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// How many workers may join a job that begins now.
    fn guests(&self) -> u64 {
        let all = self.workers.len();
        match (BUSY.load(Ordering::Relaxed), self.processors) {
            // Alone, as many as were asked for.
            (0 | 1, _) | (_, None) => all as u64,
            (runs, Some(n)) => ((n / runs).max(1) - 1).min(all) as u64,
        }
    }

    /// Runs units `0..tiles`; returns the first status that is not 0. With
    /// `serial`, all on the caller's thread.
    pub fn run(&mut self, tiles: i64, serial: bool, job: Job<'_>) -> i32 {
        if tiles <= 0 {
            return 0;
        }
        let guests = self.guests();
        if serial || guests == 0 || tiles == 1 {
            return job(0, 0, tiles);
        }
        let s = &*self.shared;
        let count = guests as i64 + 1;
        for (i, part) in (0..count).zip(&s.parts) {
            part.next.store(share(tiles, i, count), Ordering::Relaxed);
            part.end
                .store(share(tiles, i + 1, count), Ordering::Relaxed);
        }
        s.guests.store(guests, Ordering::Relaxed);
        s.status.store(0, Ordering::Relaxed);
        // SAFETY: a fat pointer is two words; workers use it only between joining
        // and leaving, and this function returns when the job is closed and all
        // have left.
        let words: [usize; 2] = unsafe { std::mem::transmute::<Job<'_>, [usize; 2]>(job) };
        s.job[0].store(words[0], Ordering::Relaxed);
        s.job[1].store(words[1], Ordering::Relaxed);
        // The shift drops what exceeds 32 bits: the number wraps.
        let epoch = (s.state.load(Ordering::Relaxed) >> EPOCH) + 1;
        s.state.store(epoch << EPOCH | OPEN, Ordering::SeqCst);
        if s.parked.load(Ordering::SeqCst) > 0 {
            // Taking the lock orders this with a worker that is about to wait.
            drop(s.lock.lock());
            s.wake.notify_all();
        }
        take_grains(s, 0, job);
        s.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while s.state.load(Ordering::Acquire) & JOINED != 0 {
            spins += 1;
            if spins < CALLER_SPINS {
                std::hint::spin_loop()
            } else {
                std::thread::yield_now()
            }
        }
        s.status.load(Ordering::Relaxed)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.lock.lock());
        self.shared.wake.notify_all();
        for w in self.workers.drain(..) {
            // A worker that panicked has nothing more to give.
            let _ = w.join();
        }
    }
}

/// Where part `i` of `count` begins.
fn share(tiles: i64, i: i64, count: i64) -> i64 {
    (tiles as i128 * i as i128 / count as i128) as i64
}

/// Units of a part that are taken at a time: half of those left, for few atomic operations
/// and an end at which threads differ by a unit.
fn grain(left: i64) -> i64 {
    (left / 2).max(1)
}

fn take_grains(s: &Shared, thread: usize, job: Job<'_>) {
    let count = s.guests.load(Ordering::Relaxed) as usize + 1;
    for i in 0..count {
        let part = &s.parts[(thread + i) % count];
        let end = part.end.load(Ordering::Relaxed);
        let take = |begin: i64| (begin < end).then(|| begin + grain(end - begin));
        while let Ok(begin) = (part.next).fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            let status = job(thread, begin, begin + grain(end - begin));
            if status != 0 {
                let _ = s
                    .status
                    .compare_exchange(0, status, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }
}

fn worker(s: &Shared, index: usize) {
    let mut seen = 0;
    let mut spins = 0u32;
    loop {
        if s.stop.load(Ordering::Relaxed) {
            return;
        }
        let state = s.state.load(Ordering::Acquire);
        if state >> EPOCH != seen {
            spins = 0;
            seen = state >> EPOCH;
            if join(s, seen) {
                let words = [
                    s.job[0].load(Ordering::Relaxed),
                    s.job[1].load(Ordering::Relaxed),
                ];
                // SAFETY: `run` wrote it before it opened the job, and waits for
                // this worker, which has joined, to leave.
                let job: Job<'_> = unsafe { std::mem::transmute::<[usize; 2], Job<'_>>(words) };
                take_grains(s, index, job);
                s.state.fetch_sub(1, Ordering::Release);
            }
            continue;
        }
        spins += 1;
        if !spins.is_multiple_of(PATIENCE) {
            std::hint::spin_loop();
            continue;
        }
        let offered = Instant::now();
        std::thread::yield_now();
        if spins < SPINS && offered.elapsed() < WANTED {
            continue;
        }
        spins = 0;
        let Ok(mut guard) = s.lock.lock() else { return };
        s.parked.fetch_add(1, Ordering::SeqCst);
        while s.state.load(Ordering::SeqCst) >> EPOCH == seen && !s.stop.load(Ordering::SeqCst) {
            guard = match s.wake.wait(guard) {
                Ok(g) => g,
                Err(_) => return,
            };
        }
        s.parked.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Joins job `epoch`, unless it is closed or over, or enough others have.
fn join(s: &Shared, epoch: u64) -> bool {
    s.state
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
            // While this job is open nobody writes how many may join.
            let free = state & JOINED < s.guests.load(Ordering::Relaxed);
            (state >> EPOCH == epoch && state & OPEN != 0 && free).then_some(state + 1)
        })
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_runs_once_whatever_the_threads() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads, None, true).unwrap();
            for round in 0..500i64 {
                let tiles = round % 97;
                let hits: Vec<AtomicI64> = (0..tiles).map(|_| AtomicI64::new(0)).collect();
                let status = pool.run(tiles, round % 7 == 0, &|_, begin, end| {
                    (begin..end).for_each(|i| {
                        hits[i as usize].fetch_add(1, Ordering::Relaxed);
                    });
                    0
                });
                assert_eq!(status, 0);
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_status_comes_back() {
        let mut pool = Pool::new(3, None, true).unwrap();
        assert_eq!(
            pool.run(50, false, &|_, b, e| if (b..e).contains(&33) {
                7
            } else {
                0
            }),
            7
        );
        assert_eq!(pool.run(50, false, &|_, _, _| 0), 0);
    }

    #[test]
    fn pools_at_once_share_the_processors() {
        let pool = |own| Pool::new(4, None, own).unwrap();
        let mut shared = pool(false);
        shared.processors = Some(4);
        // Tests beside this one run no sessions.
        let (_first, at_first) = (Busy::begin(), shared.guests());
        let (_second, with_two) = (Busy::begin(), shared.guests());
        let _more: Vec<Busy> = (0..9).map(|_| Busy::begin()).collect();
        assert_eq!((at_first, with_two, shared.guests()), (3, 1, 0));
        assert_eq!(pool(true).guests(), 3);
        let threads = Mutex::new(std::collections::BTreeSet::new());
        let status = shared.run(1000, false, &|thread, begin, end| {
            threads.lock().unwrap().insert(thread);
            (end - begin < 1000) as i32
        });
        assert_eq!((status, threads.into_inner().unwrap().len()), (0, 1));
    }

    /// Threads end together if the last grains are small, and few are all there are.
    #[test]
    fn grains_get_smaller_towards_the_end() {
        let mut pool = Pool::new(2, None, true).unwrap();
        let grains = Mutex::new(vec![]);
        pool.run(1000, false, &|_, begin, end| {
            grains.lock().unwrap().push((begin, end - begin));
            0
        });
        let mut grains = grains.into_inner().unwrap();
        grains.sort_unstable();
        assert!(grains.len() < 40, "{} grains", grains.len());
        assert_eq!((grains[0], grains[grains.len() - 1]), ((0, 250), (999, 1)));
    }
}
