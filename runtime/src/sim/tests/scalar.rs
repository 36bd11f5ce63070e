//! Loads, stores, arithmetic, branches, shared memory.

use super::{Device, blocks, bytes, text};
use crate::sim::{FaultKind, Launch, Module, Report};

const ADD: &str = "
    .reg .pred %p<2>; .reg .b32 %r<6>; .reg .f32 %f<4>; .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; ld.param.u64 %rd3, [c]; ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.s32 %p1, %r5, %r1;
    @%p1 bra DONE;
    cvta.to.global.u64 %rd1, %rd1;
    mul.wide.s32 %rd4, %r5, 4;
    add.s64 %rd5, %rd1, %rd4; add.s64 %rd6, %rd2, %rd4; add.s64 %rd7, %rd3, %rd4;
    ld.global.f32 %f1, [%rd5]; ld.global.nc.f32 %f2, [%rd6];
    add.f32 %f3, %f1, %f2;
    st.global.f32 [%rd7], %f3;
DONE:
    ret;";
const ADD_PARAMS: &str = ".param .u64 a, .param .u64 b, .param .u64 c, .param .u32 n";

fn add(n: u32, tail: u32) -> (Device, Result<Report, Box<crate::sim::Fault>>, u64) {
    let mut device = Device::default();
    device.buffer(&bytes((0..n).map(|i| (i as f32).to_bits())));
    device.buffer(&bytes((0..n).map(|i| (2.0 * i as f32).to_bits())));
    let c = device.room(n as usize * 4);
    device.params.extend((n + tail).to_le_bytes());
    let report = device.run(
        &text("sm_80", ADD_PARAMS, ADD),
        &blocks((n + tail).div_ceil(96), 96),
    );
    (device, report, c)
}

#[test]
fn vectors_are_added() {
    let (device, report, c) = add(1000, 0);
    let report = report.unwrap();
    assert_eq!(
        device.floats(c, 1000),
        (0..1000).map(|i| 3.0 * i as f32).collect::<Vec<_>>()
    );
    assert_eq!((report.global_loaded, report.global_stored), (8000, 4000));
    assert_eq!(
        (report.global_sectors, report.global_sectors_least),
        (375, 375)
    );
    assert_eq!(report.blocks, 11);
}

#[test]
fn one_element_too_many_is_out_of_bounds() {
    let (_, report, _) = add(1000, 1);
    let fault = report.unwrap_err();
    assert_eq!(
        (fault.kind, fault.block, fault.thread),
        (FaultKind::OutOfBounds, [10, 0, 0], Some([40, 0, 0]))
    );
    assert!(fault.instruction.starts_with("ld.global.f32"), "{fault}");
    assert!(fault.message.contains("0 bytes past the end"), "{fault}");
}

#[test]
fn threads_of_the_host_do_not_show() {
    let run = |threads| {
        let mut device = Device::default();
        let a = device.buffer(&bytes((0..4096).map(|i| i * 7)));
        device
            .params
            .extend([a.to_le_bytes(), a.to_le_bytes()].concat());
        device.params.extend(4096u32.to_le_bytes());
        let how = Launch {
            threads,
            ..blocks(43, 96)
        };
        (
            device.run(&text("sm_80", ADD_PARAMS, ADD), &how).unwrap(),
            device.words(a, 4096),
        )
    };
    assert_eq!(run(1), run(4));
}

#[test]
fn lanes_part_and_meet() {
    // Each lane counts to its own number; odd ones then subtract 100.
    let body = "
    .reg .pred %p<4>; .reg .b32 %r<8>; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x; mov.b32 %r2, 0; mov.b32 %r3, 0;
LOOP:
    setp.ge.u32 %p1, %r2, %r1;
    @%p1 bra END;
    add.u32 %r3, %r3, %r2; add.u32 %r2, %r2, 1;
    bra LOOP;
END:
    and.b32 %r4, %r1, 1;
    setp.eq.u32 %p2, %r4, 0;
    @%p2 bra.uni EVEN;
    sub.u32 %r3, %r3, 100;
EVEN:
    bar.warp.sync 0xffffffff;
    activemask.b32 %r5;
    mul.wide.u32 %rd2, %r1, 8; add.u64 %rd3, %rd1, %rd2;
    st.global.v2.b32 [%rd3], {%r3, %r5};
    ret;";
    let mut device = Device::default();
    let out = device.room(256);
    device
        .run(&text("sm_80", ".param .u64 out", body), &blocks(1, 32))
        .unwrap();
    for (i, pair) in device.words(out, 64).chunks(2).enumerate() {
        let i = i as u32;
        let sum = (i * i.saturating_sub(1) / 2).wrapping_sub(if i % 2 == 1 { 100 } else { 0 });
        assert_eq!(pair, [sum, u32::MAX], "lane {i}");
    }
}

/// Each thread stores its number, and after what `between` says reads its neighbour's.
fn neighbours(between: &str) -> Result<Vec<u32>, Box<crate::sim::Fault>> {
    let body = format!(
        "
    .reg .b32 %r<8>; .reg .b64 %rd<4>;
    .shared .align 16 .b8 tile[512];
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 2; mov.u32 %r3, tile; add.u32 %r4, %r3, %r2;
    st.shared.u32 [%r4], %r1;
    {between}
    xor.b32 %r5, %r2, 508; add.u32 %r6, %r3, %r5;
    ld.shared.u32 %r7, [%r6];
    mul.wide.u32 %rd2, %r1, 4; add.u64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], %r7;
    ret;"
    );
    let mut device = Device::default();
    let out = device.room(512);
    let report = device.run(&text("sm_80", ".param .u64 out", &body), &blocks(1, 128))?;
    assert_eq!(
        (
            report.shared_accesses,
            report.bank_conflicts,
            report.barriers
        ),
        (8, 0, 1)
    );
    Ok(device.words(out, 128))
}

#[test]
fn a_barrier_orders_shared_memory() {
    assert_eq!(
        neighbours("bar.sync 0;").unwrap(),
        (0..128).rev().collect::<Vec<u32>>()
    );
    let fault = neighbours("").unwrap_err();
    assert!(
        matches!(fault.kind, FaultKind::Race | FaultKind::Unwritten),
        "{fault}"
    );
    let fault = neighbours("bar.warp.sync 0xffffffff;").unwrap_err();
    assert!(
        matches!(fault.kind, FaultKind::Race | FaultKind::Unwritten),
        "{fault}"
    );
}

#[test]
fn text_that_breaks_a_rule_is_an_error_with_its_place() {
    let error = |body: &str| match Module::parse(&text("sm_80", "", body)) {
        Ok(_) => panic!("accepted: {body}"),
        Err(error) => error.to_string(),
    };
    for (body, what) in [
        (
            ".reg .b32 %r<2>; add.s32 %r0, %r1, %r2;",
            "`%r2` is not declared",
        ),
        (
            ".reg .b32 %r<2>; .reg .f32 %f; add.s32 %r0, %r1, %f;",
            "a register of .f32 stands for",
        ),
        (".reg .b32 %r<2>; frob.s32 %r0, %r1;", "no such instruction"),
        (
            ".reg .b32 %r<2>; add.wibble.s32 %r0, %r1, %r1;",
            "`.wibble` stands where",
        ),
        (".reg .b32 %r<2>; abs.u32 %r0, %r1;", "`.u32` stands where"),
        (".reg .b32 %r<2>; mov.b32 %r0, %r1, %r1;", "3 operands"),
        (".reg .b32 %r<2>; bra NOWHERE;", "`NOWHERE` is not declared"),
        (".reg .f32 %f; fma.f32 %f, %f, %f, %f;", "one of .rn"),
        (
            ".reg .b32 %r; .reg .f32 %f; cvt.s32.f32 %r, %f;",
            "rounding modifier is missing",
        ),
        (
            ".reg .b32 %r; .reg .b64 %d; ld.global.u32 %r, [%r];",
            "holds no address",
        ),
        (".reg .b32 %r; ld.global.v2.u32 %r, [0];", "has 1 parts"),
        (".reg .b32 %r; mov.b32 %r, 0x1ffffffff;", "does not fit"),
        (
            ".reg .b32 %r; { .reg .b32 %q; } mov.b32 %r, %q;",
            "`%q` is not declared",
        ),
    ] {
        let error = error(body);
        assert!(
            error.contains("K0780") && error.contains("line 6") && error.contains(what),
            "{body}: {error}"
        );
        assert!(error.contains("help"), "{error}");
    }
}
