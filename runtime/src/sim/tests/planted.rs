//! Bugs that are planted, one each: the right fault must be seen.

use super::hopper::{product, run_product};
use super::{Device, blocks, bytes, text};
use crate::sim::{Fault, FaultKind, Launch, Swizzle};

/// The fault of the product by wgmma with a part of its text replaced.
fn broken(from: &str, to: &str) -> Box<Fault> {
    let body = product();
    assert!(body.contains(from), "{from}");
    match run_product(&body.replace(from, to), |_| {}) {
        Ok((out, expected, _)) => panic!("no fault; right: {}", out == expected),
        Err(fault) => fault,
    }
}

#[test]
fn a_missing_wait_for_wgmma() {
    let fault = broken("wgmma.wait_group.sync.aligned 0;", "");
    assert_eq!(fault.kind, FaultKind::MissingWait, "{fault}");
    // Waited for after its memory is overwritten by the next copy.
    let fault = broken(
        "wgmma.wait_group.sync.aligned 0;\n    bar.sync 0;",
        "bar.sync 0;",
    );
    assert_eq!(fault.kind, FaultKind::MissingWait, "{fault}");
    assert!(fault.message.contains("wgmma still reads"), "{fault}");
}

#[test]
fn a_missing_fence_of_registers() {
    let fault = broken("wgmma.fence.sync.aligned;", "");
    assert_eq!(fault.kind, FaultKind::MissingFence, "{fault}");
}

#[test]
fn a_missing_fence_of_the_mbarrier() {
    let fault = broken("fence.mbarrier_init.release.cluster;", "");
    assert_eq!(fault.kind, FaultKind::MissingFence, "{fault}");
}

#[test]
fn the_wrong_phase() {
    // The loop never flips the parity: in the second round warps do not wait.
    let fault = broken("xor.b32 %r7, %r7, 1;", "");
    assert_eq!(fault.kind, FaultKind::MissingWait, "{fault}");
    // It waits for the phase after the one that comes.
    let fault = broken("mov.b32 %r7, 0;", "mov.b32 %r7, 1;");
    assert!(
        matches!(fault.kind, FaultKind::MissingWait | FaultKind::Unwritten),
        "{fault}"
    );
    // More bytes are expected than come.
    let fault = broken("_, [%r3], 16384;", "_, [%r3], 16400;");
    assert_eq!(fault.kind, FaultKind::Deadlock, "{fault}");
    assert!(
        fault.message.contains("mbarrier.try_wait") && fault.message.contains("warp 3"),
        "{fault}"
    );
}

#[test]
fn a_missing_barrier_before_the_next_copy() {
    let fault = broken(
        "wgmma.wait_group.sync.aligned 0;\n    bar.sync 0;",
        "wgmma.wait_group.sync.aligned 0;",
    );
    assert_eq!(fault.kind, FaultKind::MissingWait, "{fault}");
}

#[test]
fn the_wrong_swizzle_gives_other_numbers() {
    let (out, expected, _) = run_product(&product(), |m| {
        m.swizzle = Swizzle::None;
    })
    .unwrap();
    assert_ne!(out, expected);
}

#[test]
fn a_box_outside_its_tensor() {
    let fault = broken("mov.b32 %r8, 0;", "mov.b32 %r8, 64;");
    assert_eq!(fault.kind, FaultKind::Tensor, "{fault}");
    assert!(
        fault.instruction.starts_with("cp.async.bulk.tensor"),
        "{fault}"
    );
}

#[test]
fn a_register_that_nothing_wrote() {
    let body = ".reg .b32 %r<4>; .reg .pred %p<2>;
    mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 5;
    @%p1 mov.b32 %r2, 1;
    add.u32 %r3, %r2, %r1;
    ret;";
    let fault = Device::default()
        .run(&text("sm_80", "", body), &blocks(1, 32))
        .unwrap_err();
    assert_eq!(
        (fault.kind, fault.thread, fault.line),
        (FaultKind::Uninitialised, Some([5, 0, 0]), 9)
    );
}

/// A kernel of shared memory and its fault.
fn fault(body: &str, threads: u32) -> Box<Fault> {
    let head = "
    .reg .pred %p<4>; .reg .b32 %r<12>; .reg .b64 %rd<4>; .reg .f32 %f<4>;
    .shared .align 16 .b8 t[1024];
    ld.param.u64 %rd1, [in];
    mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 2; mov.u32 %r3, t; add.u32 %r4, %r3, %r2;";
    let mut device = Device::default();
    device.buffer(&bytes(0..256));
    let ptx = text("sm_80", ".param .u64 in", &format!("{head}\n{body}\nret;"));
    device.run(&ptx, &blocks(1, threads)).unwrap_err()
}

#[test]
fn a_missing_barrier() {
    // Warp 1 writes what warp 0 has read.
    let f = fault(
        "bar.sync 0; st.shared.u32 [%r4], %r1; bar.sync 0; ld.shared.u32 %r5, [%r3]; st.shared.u32 [%r4], %r5;",
        64,
    );
    assert_eq!(f.kind, FaultKind::Race, "{f}");
    assert!(f.message.contains("reads is overwritten"), "{f}");
    // Lanes of one warp as well.
    let f = fault(
        "st.shared.u32 [%r4], %r1; xor.b32 %r5, %r4, 4; ld.shared.u32 %r6, [%r5];",
        32,
    );
    assert_eq!(f.kind, FaultKind::Race, "{f}");
}

#[test]
fn shared_memory_that_nothing_wrote() {
    let f = fault(
        "st.shared.u32 [%r4], %r1; bar.sync 0; ld.shared.u32 %r5, [%r4+128];",
        32,
    );
    assert_eq!(
        (f.kind, f.address),
        (FaultKind::Unwritten, Some(128)),
        "{f}"
    );
}

#[test]
fn a_store_past_the_end() {
    let f = fault("st.shared.u32 [%r4+1020], %r1;", 32);
    assert_eq!(
        (f.kind, f.thread, f.address),
        (FaultKind::OutOfBounds, Some([1, 0, 0]), Some(1024)),
        "{f}"
    );
}

#[test]
fn a_divergent_barrier() {
    let f = fault("setp.lt.u32 %p1, %r1, 7; @%p1 bar.sync 0;", 32);
    assert_eq!(f.kind, FaultKind::Divergent, "{f}");
    let f = fault(
        "setp.lt.u32 %p1, %r1, 7; @%p1 shfl.sync.down.b32 %r5, %r1, 1, 31, 0xffffffff;",
        32,
    );
    assert_eq!(f.kind, FaultKind::Divergent, "{f}");
}

#[test]
fn a_barrier_that_not_all_reach() {
    let f = fault(
        "setp.lt.u32 %p1, %r1, 32; @%p1 bra END; bar.sync 3, 128; END:",
        96,
    );
    assert_eq!(f.kind, FaultKind::Operand, "{f}");
    let f = fault(
        "setp.lt.u32 %p1, %r1, 32; @%p1 bra END; bar.sync 3, 96; END:",
        96,
    );
    assert_eq!(f.kind, FaultKind::Deadlock, "{f}");
    assert!(
        f.message.contains("warp 1, warp 2 at line") && f.message.contains("bar.sync 3, 96"),
        "{f}"
    );
}

#[test]
fn a_read_before_the_copy_is_waited_for() {
    let copy = "mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd2, %rd1; cp.async.ca.shared.global [%r4], [%rd2], 4; cp.async.commit_group;";
    let f = fault(&format!("{copy} ld.shared.u32 %r5, [%r4]; trap;"), 32);
    assert_eq!(f.kind, FaultKind::MissingWait, "{f}");
    // Waited for, but not by those who read.
    let f = fault(
        &format!(
            "{copy} cp.async.wait_group 0; xor.b32 %r5, %r4, 4; ld.shared.u32 %r5, [%r5]; trap;"
        ),
        32,
    );
    assert_eq!(f.kind, FaultKind::Race, "{f}");
    let f = fault(
        &format!(
            "{copy} cp.async.wait_group 0; bar.sync 0; xor.b32 %r5, %r4, 4; ld.shared.u32 %r5, [%r5]; trap;"
        ),
        32,
    );
    assert_eq!(f.kind, FaultKind::Trap, "{f}");
}

#[test]
fn a_misaligned_vector() {
    let f = fault("ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%rd1+8];", 32);
    assert_eq!(f.kind, FaultKind::Misaligned, "{f}");
}

#[test]
fn a_loop_that_does_not_end() {
    let body = "LOOP: bra LOOP;";
    let how = Launch {
        steps: 1_000_000,
        ..blocks(1, 32)
    };
    let fault = Device::default()
        .run(&text("sm_80", "", body), &how)
        .unwrap_err();
    assert_eq!(fault.kind, FaultKind::Steps, "{fault}");
}
