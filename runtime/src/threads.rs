//! How many threads a session has, and on which processors they stay.

use crate::error::{Error, Result};
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

/// Which processors threads stay on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Pin {
    /// The system moves them as it likes.
    #[default]
    Free,
    /// One each of those that the process may use: one of every core first, then the
    /// cores' further hardware threads.
    Auto,
    /// These, by the system's numbers, in order; the caller's thread has the first.
    Processors(Vec<usize>),
}

/// The threads of a session, the caller's included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Threads {
    /// How many; 0: as many as [`Pin::Processors`] lists, or as [`available`] says.
    pub count: usize,
    /// Where they stay.
    pub pin: Pin,
}

impl From<usize> for Threads {
    /// That many, anywhere.
    fn from(count: usize) -> Threads {
        let pin = Pin::Free;
        Threads { count, pin }
    }
}

/// Processors that this process may use at once: its affinity mask, and what its
/// control group is granted.
pub fn available() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// The processors in the affinity mask of this thread, ascending.
pub fn allowed() -> Vec<usize> {
    let set = affinity();
    // SAFETY: the index is inside the set.
    let has = |&p: &usize| unsafe { libc::CPU_ISSET(p, &set) };
    (0..libc::CPU_SETSIZE as usize).filter(has).collect()
}

impl Threads {
    /// How many threads, and the processor of each; none: anywhere.
    pub fn places(&self) -> Result<(usize, Option<Vec<usize>>)> {
        let count = match (self.count, &self.pin) {
            (0, Pin::Processors(list)) => list.len(),
            (0, Pin::Free | Pin::Auto) => available(),
            (n, _) => n,
        };
        let list = match &self.pin {
            Pin::Free => return Ok((count, None)),
            Pin::Auto => cores_first(allowed()),
            Pin::Processors(list) => {
                let allowed = allowed();
                if let Some(p) = list.iter().find(|p| !allowed.contains(p)) {
                    let message = format!("this process may not use processor {p}");
                    return Err(Error::input("K0733", message)
                        .help(format!("it may use {}", Pin::Processors(allowed))));
                }
                list.clone()
            }
        };
        if list.len() < count {
            let n = list.len();
            return Err(Error::input(
                "K0733",
                format!("{count} threads cannot be pinned to {n} processors"),
            )
            .help(format!("ask for {n} threads at most, or do not pin them")));
        }
        Ok((count, Some(list)))
    }
}

/// One processor of each core, then the second of each, and so on.
fn cores_first(processors: Vec<usize>) -> Vec<usize> {
    let place = |&p: &usize| {
        let path = format!("/sys/devices/system/cpu/cpu{p}/topology/thread_siblings_list");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // A system that does not say so has one thread a core.
        let siblings = text.trim().parse::<Pin>();
        match siblings {
            Ok(Pin::Processors(all)) => all.iter().position(|&s| s == p).unwrap_or(0),
            Ok(Pin::Free | Pin::Auto) | Err(_) => 0,
        }
    };
    let mut by_core = processors;
    // Stable: within a rank, ascending as before.
    by_core.sort_by_cached_key(place);
    by_core
}

impl FromStr for Pin {
    type Err = String;

    /// `none`, `auto`, or numbers and ranges as the system writes them: `0,2-3`.
    fn from_str(text: &str) -> std::result::Result<Pin, String> {
        if text == "none" {
            return Ok(Pin::Free);
        }
        if text == "auto" {
            return Ok(Pin::Auto);
        }
        let wrong = || format!("`{text}` is neither `auto`, `none` nor processors such as `0,2-3`");
        let number = |t: &str| {
            t.trim()
                .parse()
                .ok()
                .filter(|&n| n < libc::CPU_SETSIZE as usize)
        };
        let mut list: Vec<usize> = vec![];
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = number(first).zip(number(last)).ok_or_else(wrong)?;
            let before = list.len();
            list.extend(first..=last);
            if first > last || list[..before].iter().any(|p| (first..=last).contains(p)) {
                return Err(wrong());
            }
        }
        Ok(Pin::Processors(list))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pin::Free => f.write_str("none"),
            Pin::Auto => f.write_str("auto"),
            Pin::Processors(list) => {
                let list: Vec<String> = list.iter().map(usize::to_string).collect();
                f.write_str(&list.join(","))
            }
        }
    }
}

/// The calling thread, kept on one processor until this is dropped.
pub struct Pinned {
    before: libc::cpu_set_t,
    /// Dropped where it was made: the mask is that thread's.
    here: PhantomData<*const ()>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // What was allowed before is allowed still.
        let _ = set_affinity(&self.before);
    }
}

/// Keeps the calling thread on a processor.
pub fn pin(processor: usize) -> Result<Pinned> {
    let before = affinity();
    // SAFETY: a set of zeros is an empty set, and the index is checked.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if processor < libc::CPU_SETSIZE as usize {
        unsafe { libc::CPU_SET(processor, &mut set) };
    }
    match set_affinity(&set) {
        true => Ok(Pinned {
            before,
            here: PhantomData,
        }),
        false => Err(Error::run(
            "K0733",
            format!(
                "a thread cannot be pinned to processor {processor}: {}",
                std::io::Error::last_os_error()
            ),
        )
        .help("do not pin threads, or to other processors")),
    }
}

fn affinity() -> libc::cpu_set_t {
    // SAFETY: the set is as large as is said; where the call fails it stays empty.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set);
        set
    }
}

fn set_affinity(set: &libc::cpu_set_t) -> bool {
    // SAFETY: the set is as large as is said.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_the_system_writes_them() {
        assert_eq!("auto".parse(), Ok(Pin::Auto));
        assert_eq!("none".parse(), Ok(Pin::Free));
        assert_eq!("3".parse(), Ok(Pin::Processors(vec![3])));
        assert_eq!("4,0-2".parse(), Ok(Pin::Processors(vec![4, 0, 1, 2])));
        for wrong in ["", "a", "1,", "2-1", "0,0", "0-2,1", "-1", "99999999"] {
            assert!(wrong.parse::<Pin>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn threads_have_a_processor_each() {
        let all = allowed();
        assert!(!all.is_empty() && available() <= all.len());
        let one = |count, pin| Threads { count, pin }.places();
        let listed = Pin::Processors(all.clone());
        assert_eq!(
            one(0, listed.clone()).unwrap(),
            (all.len(), Some(all.clone()))
        );
        assert_eq!(one(1, listed.clone()).unwrap().0, 1);
        assert_eq!(one(5, Pin::Free).unwrap(), (5, None));
        let mut auto = one(0, Pin::Auto).unwrap().1.unwrap();
        auto.sort_unstable();
        assert_eq!(auto, all);
        for (count, pin) in [
            (all.len() + 1, listed),
            (all.len() + 1, Pin::Auto),
            (1, Pin::Processors(vec![1023])),
        ] {
            let error = one(count, pin).unwrap_err();
            assert!(error.code == "K0733" && error.help.is_some(), "{error}");
        }
    }

    #[test]
    fn a_pinned_thread_stays_and_is_let_go() {
        let all = allowed();
        for &p in &all {
            let pinned = pin(p).unwrap();
            assert_eq!(allowed(), [p]);
            // SAFETY: a system call without arguments.
            assert_eq!(unsafe { libc::sched_getcpu() }, p as i32);
            drop(pinned);
            assert_eq!(allowed(), all);
        }
        assert!(pin(1023).is_err_and(|e| e.code == "K0733"));
        assert_eq!(allowed(), all);
    }
}
