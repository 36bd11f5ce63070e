//! How fast kernels are simulated: printed when asked for.
//!
//! `cargo test --release -p kiln-runtime --features sim --lib rate -- --ignored --nocapture`

use super::hopper::list;
use super::{Device, blocks, bytes, text};
use crate::sim::{Launch, Report};

/// Time of this thread on a processor: other work on the machine does not count.
fn seconds() -> f64 {
    // SAFETY: a clock is read into a structure that is there.
    unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time);
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    }
}

fn timed(target: &str, body: &str, threads: u32) -> (Report, f64) {
    let mut device = Device::default();
    device.buffer(&bytes(0..65536));
    let how = Launch {
        threads: 1,
        ..blocks(1, threads)
    };
    let start = seconds();
    let report = device
        .run(&text(target, ".param .u64 a", body), &how)
        .unwrap_or_else(|f| panic!("{f}"));
    (report, seconds() - start)
}

fn lanes(report: &Report) -> f64 {
    let c = report.instructions;
    (c.integer + c.float + c.convert + c.moves + c.control + c.memory + c.matrix + c.sync) as f64
}

/// A loop of `n` rounds around `inner`.
fn looped(n: u32, regs: &str, start: &str, inner: &str) -> String {
    format!(
        ".reg .pred %l; .reg .b32 %i; {regs} {start} mov.b32 %i, 0;
    LOOP: {inner} add.u32 %i, %i, 1; setp.lt.u32 %l, %i, {n}; @%l bra LOOP; ret;"
    )
}

#[test]
#[ignore = "prints how fast the simulator is"]
fn rates() {
    let regs = ".reg .b32 %r<8>; .reg .f32 %f<8>; .reg .b64 %d<8>;";
    let start = "mov.u32 %r1, %tid.x; mov.b32 %r2, 3; cvt.rn.f32.u32 %f1, %r1; mov.f32 %f2, 0f3F000000; cvt.u64.u32 %d1, %r1;";
    let kinds = [
        ("integer", "add.u32 %r1, %r1, %r2; xor.b32 %r2, %r2, %r1; mad.lo.u32 %r1, %r1, 5, %r2; shl.b32 %r3, %r1, 2;".repeat(4)),
        ("float", "fma.rn.f32 %f1, %f1, %f2, %f2; add.f32 %f3, %f1, %f2; mul.f32 %f4, %f3, %f2; max.f32 %f5, %f4, %f1;".repeat(4)),
        ("64 bits", "add.s64 %d1, %d1, 8; mul.wide.u32 %d2, %r1, 4; add.s64 %d3, %d1, %d2;".repeat(5)),
        ("ex2", "ex2.approx.f32 %f3, %f2; ".repeat(16)),
    ];
    for (name, inner) in kinds {
        let (report, seconds) = timed("sm_80", &looped(2000, regs, start, &inner), 256);
        println!(
            "{name}: {:.0} M lane-instructions/s",
            lanes(&report) / seconds / 1e6
        );
    }
    let memory =
        "ld.global.f32 %f1, [%d4]; ld.global.f32 %f2, [%d4+1024]; st.global.f32 [%d4], %f1;"
            .repeat(4);
    let start = "ld.param.u64 %d4, [a]; mov.u32 %r1, %tid.x; mul.wide.u32 %d5, %r1, 4; add.s64 %d4, %d4, %d5;";
    let (report, seconds) = timed("sm_80", &looped(500, regs, start, &memory), 256);
    println!(
        "global memory: {:.0} M lane-instructions/s",
        lanes(&report) / seconds / 1e6
    );
    let shared = "st.shared.u32 [%r4], %r1; bar.sync 0; xor.b32 %r5, %r4, 128; ld.shared.u32 %r2, [%r5]; bar.sync 0;".repeat(6);
    let regs = format!("{regs} .shared .align 16 .b8 t[4096];");
    let start = "mov.u32 %r1, %tid.x; mov.u32 %r3, t; shl.b32 %r4, %r1, 2; add.u32 %r4, %r4, %r3;";
    let (report, seconds) = timed("sm_80", &looped(500, &regs, start, &shared), 256);
    println!(
        "shared memory: {:.0} M lane-instructions/s",
        lanes(&report) / seconds / 1e6
    );
    let start = "mov.b32 %r1, 0x3f803f80; mov.f32 %f0, 0f00000000; mov.f32 %f1, %f0; mov.f32 %f2, %f0; mov.f32 %f3, %f0;";
    let mma = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3}, {%r1, %r1, %r1, %r1}, {%r1, %r1}, {%f0, %f1, %f2, %f3};".repeat(8);
    let (report, seconds) = timed("sm_80", &looped(1000, &regs, start, &mma), 128);
    println!(
        "mma: {:.2} Gflop/s",
        report.mma_flops as f64 / seconds / 1e9
    );
    wgmma();
}

fn wgmma() {
    let d = list("f", 128);
    let inner = format!("wgmma.fence.sync.aligned; {} wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;",
        format!("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {{{d}}}, %d1, %d1, %p, 1, 1, 0, 0;").repeat(4));
    let regs = ".reg .pred %p; .reg .f32 %f<128>; .reg .b32 %r<8>; .reg .b64 %d<4>; .shared .align 1024 .b8 t[32768];";
    let fill = "setp.ne.u32 %p, 0, 0; mov.u32 %r1, %tid.x; mov.u32 %r2, t; shl.b32 %r3, %r1, 4; add.u32 %r3, %r3, %r2; mov.b32 %r4, 0; mov.b32 %r5, 0x3f803f80;
    FILL: st.shared.v4.b32 [%r3], {%r5, %r5, %r5, %r5}; add.u32 %r3, %r3, 2048; add.u32 %r4, %r4, 1; setp.lt.u32 %p, %r4, 16; @%p bra FILL;
    fence.proxy.async; bar.sync 0; setp.ne.u32 %p, 0, 0; mov.b64 %d1, 0x4000004000010000;";
    let (report, seconds) = timed("sm_90a", &looped(30, regs, fill, &inner), 128);
    println!(
        "wgmma: {:.2} Gflop/s",
        report.mma_flops as f64 / seconds / 1e9
    );
}
