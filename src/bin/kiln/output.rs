//! What goes to stdout, and progress on stderr.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt::Arguments;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whoever read our answer has gone: `kiln … | head`. That is no error, and
/// nothing more is written.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Writes an answer.
pub fn put(text: Arguments) {
    if CLOSED.load(Ordering::Relaxed) {
        return;
    }
    let mut out = std::io::stdout().lock();
    if out.write_fmt(text).and_then(|()| out.flush()).is_err() {
        CLOSED.store(true, Ordering::Relaxed);
    }
}

/// `print!` that outlives its reader.
macro_rules! out {
    ($($arg:tt)*) => { $crate::output::put(format_args!($($arg)*)) };
}

/// `println!` that outlives its reader.
macro_rules! outln {
    ($($arg:tt)*) => { $crate::output::put(format_args!("{}\n", format_args!($($arg)*))) };
}

pub(crate) use {out, outln};

static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Shows how far long work is: on a terminal alone, and not before it has taken a
/// while. The last step clears it.
pub fn progress(what: &str, done: usize, total: usize) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let Ok(mut bar) = BAR.lock() else { return };
    let bar = bar.get_or_insert_with(|| {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
        let style = ProgressStyle::with_template("{msg:>12} {wide_bar} {pos}/{len} {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar
    });
    bar.set_length(total as u64);
    bar.set_message(what.to_string());
    bar.set_position(done as u64);
    if done >= total {
        bar.finish_and_clear();
        bar.reset();
    }
}
