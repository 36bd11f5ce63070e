//! State spaces, generic addresses, atomics across blocks, copies that mbarriers complete.

use super::{Device, blocks, bytes, text};
use crate::sim::{Fault, FaultKind, Launch, Module, launch};

#[test]
fn every_state_space() {
    let ptx = "
.version 7.8
.target sm_80
.address_size 64
.const .align 4 .u32 table[4] = {10, 20, 30, 40};
.global .align 8 .f32 scale = 0f40000000;
.visible .entry k(.param .u64 out, .param .align 16 .b8 pair[16])
{
    .reg .pred %p<4>; .reg .b32 %r<12>; .reg .b64 %rd<12>; .reg .f32 %f<4>;
    .local .align 8 .b8 stack[16];
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    and.b32 %r2, %r1, 3; mul.wide.u32 %rd2, %r2, 4; mov.u64 %rd3, table; add.s64 %rd3, %rd3, %rd2;
    ld.const.u32 %r3, [%rd3];
    ld.global.f32 %f1, [scale]; cvt.rn.f32.u32 %f2, %r3; mul.rn.f32 %f2, %f2, %f1; cvt.rzi.u32.f32 %r4, %f2;
    st.local.u32 [stack+4], %r4;
    mov.b64 %rd4, stack; cvta.local.u64 %rd4, %rd4; ld.u32 %r5, [%rd4+4];
    isspacep.local %p1, %rd4; isspacep.global %p2, %rd4; selp.b32 %r6, 1, 0, %p1; selp.b32 %r7, 2, 0, %p2; or.b32 %r6, %r6, %r7;
    ld.param.v4.b32 {%r8, %r9, %r10, %r11}, [pair];
    add.u32 %r8, %r8, %r11;
    cvta.const.u64 %rd5, table; ld.u32 %r9, [%rd5+12];
    mul.wide.u32 %rd6, %r1, 16; add.s64 %rd6, %rd6, %rd1;
    st.v4.u32 [%rd6], {%r5, %r6, %r8, %r9};
    ret;
}";
    let mut device = Device::default();
    let out = device.room(512);
    device.params.resize(16, 0);
    device.params.extend(bytes([100, 0, 0, 7]));
    device.run(ptx, &blocks(1, 32)).unwrap();
    let expected: Vec<u32> = (0..32)
        .flat_map(|i| [20 * (i % 4 + 1), 1, 107, 40])
        .collect();
    assert_eq!(device.words(out, 128), expected);
}

#[test]
fn float_atomics_go_in_the_order_of_blocks() {
    // Sums that depend on their order: 2^24 and ones.
    let body = "
    .reg .b32 %r<4>; .reg .b64 %rd<2>; .reg .f32 %f<4>; .reg .pred %p;
    ld.param.u64 %rd1, [sum];
    mov.u32 %r1, %ctaid.x; setp.eq.u32 %p, %r1, 5; selp.f32 %f1, 0f4B800000, 0f3F800000, %p;
    red.global.add.f32 [%rd1], %f1;
    ret;";
    for threads in [1, 4] {
        let mut device = Device::default();
        let sum = device.buffer(&0f32.to_le_bytes());
        let how = Launch {
            threads,
            ..blocks(64, 1)
        };
        let report = device
            .run(&text("sm_80", ".param .u64 sum", body), &how)
            .unwrap();
        // Five ones, then 2^24 + 5 is rounded to even, then each one is lost or not.
        let expected = (0..64).fold(0f32, |s, i| s + if i == 5 { 16777216.0 } else { 1.0 });
        assert_eq!((device.floats(sum, 1)[0], report.atomics), (expected, 64));
    }
}

fn copies(wait: &str) -> Result<Vec<u32>, Box<Fault>> {
    let body = format!("
    .reg .b32 %r<8>; .reg .b64 %rd<8>; .reg .pred %p<4>;
    .shared .align 16 .b8 t[2048]; .shared .align 8 .b64 bar;
    ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out];
    mov.u32 %r1, %tid.x; mov.u32 %r2, bar; setp.eq.u32 %p1, %r1, 0;
    @%p1 mbarrier.init.shared.b64 [%r2], 128;
    bar.sync 0;
    mov.u32 %r3, t; shl.b32 %r4, %r1, 4; add.u32 %r5, %r3, %r4; mul.wide.u32 %rd3, %r1, 16; add.s64 %rd4, %rd1, %rd3;
    cp.async.cg.shared.global [%r5], [%rd4], 16;
    cp.async.mbarrier.arrive.noinc.shared.b64 [%r2];
    {wait}
    xor.b32 %r6, %r4, 2032; add.u32 %r6, %r6, %r3;
    ld.shared.u32 %r7, [%r6+4];
    mul.wide.u32 %rd3, %r1, 4; add.s64 %rd2, %rd2, %rd3; st.global.u32 [%rd2], %r7;
    ret;");
    let mut device = Device::default();
    device.buffer(&bytes(0..512));
    let out = device.room(512);
    device.run(
        &text("sm_80", ".param .u64 in, .param .u64 out", &body),
        &blocks(1, 128),
    )?;
    Ok(device.words(out, 128))
}

#[test]
fn copies_that_an_mbarrier_completes() {
    let wait = "WAIT: mbarrier.test_wait.parity.shared.b64 %p2, [%r2], 0; @!%p2 bra WAIT;";
    assert_eq!(
        copies(wait).unwrap(),
        (0..128).map(|i| 4 * (127 - i) + 1).collect::<Vec<u32>>()
    );
    let fault = copies("").unwrap_err();
    assert!(
        matches!(fault.kind, FaultKind::MissingWait | FaultKind::Unwritten),
        "{fault}"
    );
    let fault = copies("bar.sync 0;").unwrap_err();
    assert_eq!(fault.kind, FaultKind::MissingWait, "{fault}");
}

#[test]
fn states_of_an_mbarrier() {
    let body = "
    .reg .b32 %r<8>; .reg .b64 %rd<8>; .reg .pred %p<4>; .shared .align 8 .b64 bar;
    ld.param.u64 %rd1, [out]; mov.u32 %r2, bar;
    mbarrier.init.shared.b64 [%r2], 2;
    mbarrier.arrive.shared.b64 %rd2, [%r2];
    mbarrier.test_wait.shared.b64 %p1, [%r2], %rd2;
    mbarrier.arrive.shared.b64 _, [%r2];
    mbarrier.test_wait.shared.b64 %p2, [%r2], %rd2;
    mbarrier.pending_count.b64 %r3, %rd2;
    selp.b32 %r4, 1, 0, %p1; selp.b32 %r5, 1, 0, %p2;
    mbarrier.inval.shared.b64 [%r2];
    st.shared.b64 [%r2], %rd2;
    st.global.u32 [%rd1], %r3; st.global.u32 [%rd1+4], %r4; st.global.u32 [%rd1+8], %r5;
    ret;";
    let mut device = Device::default();
    let out = device.room(16);
    device
        .run(&text("sm_90", ".param .u64 out", body), &blocks(1, 1))
        .unwrap();
    assert_eq!(device.words(out, 3), [2, 0, 1]);
    let twice = body.replace("_, [%r2];", "_, [%r2], 3;");
    let fault = device
        .run(&text("sm_90", ".param .u64 out", &twice), &blocks(1, 1))
        .unwrap_err();
    assert_eq!(fault.kind, FaultKind::Mbarrier, "{fault}");
}

#[test]
fn a_copy_to_several_ctas_and_a_sum_into_memory() {
    let body = "
    .reg .b32 %r<8>; .reg .b64 %rd<8>; .reg .pred %p<4>; .reg .b16 %h; .reg .f32 %f<4>;
    .shared .align 128 .b8 t[128]; .shared .align 8 .b64 bar;
    ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out];
    mov.u32 %r1, %cluster_ctarank; mov.u32 %r2, bar; mov.u32 %r3, t; mov.b16 %h, 3;
    mbarrier.init.shared.b64 [%r2], 1;
    fence.mbarrier_init.release.cluster;
    mbarrier.arrive.expect_tx.shared.b64 _, [%r2], 128;
    barrier.cluster.arrive; barrier.cluster.wait;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra WAIT;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r3], [%rd1], 128, [%r2], %h;
WAIT:
    mbarrier.try_wait.parity.shared.b64 %p2, [%r2], 0;
    @!%p2 bra WAIT;
    ld.shared.f32 %f1, [%r3]; add.f32 %f1, %f1, %f1; st.shared.f32 [%r3], %f1;
    fence.proxy.async.shared::cta;
    cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%rd2], [%r3], 128;
    cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;
    barrier.cluster.arrive; barrier.cluster.wait;
    ret;";
    let run = |body: &str| {
        let mut device = Device::default();
        device.buffer(&bytes((0..32).map(|i| (i as f32 + 1.0).to_bits())));
        let out = device.buffer(&[0; 128]);
        let how = Launch {
            cluster: [2, 1, 1],
            ..blocks(2, 1)
        };
        device
            .run(
                &text("sm_90", ".param .u64 in, .param .u64 out", body),
                &how,
            )
            .map(|_| device.floats(out, 32))
    };
    let expected: Vec<f32> = (0..32)
        .map(|i| if i == 0 { 4.0 } else { 2.0 * (i as f32 + 1.0) })
        .collect();
    assert_eq!(run(body).unwrap(), expected);
    let fault = run(&body.replace("fence.proxy.async.shared::cta;", "")).unwrap_err();
    assert_eq!(fault.kind, FaultKind::MissingFence, "{fault}");
    let fault = run(&body.replace("cp.async.bulk.wait_group 0;", "")).unwrap_err();
    assert_eq!(fault.kind, FaultKind::MissingWait, "{fault}");
    let fault =
        run(&body.replace("cp.async.bulk.wait_group 0;", "st.shared.f32 [%r3], %f1;")).unwrap_err();
    assert!(fault.message.contains("a bulk copy still reads"), "{fault}");
}

#[test]
fn a_launch_must_fit_its_kernel() {
    let ptx = ".version 8.0\n.target sm_80\n.address_size 64\n.entry k(.param .u64 a) .reqntid 64 { .extern .shared .align 16 .b8 t[]; ret; }";
    let module = Module::parse(ptx).unwrap();
    let kernel = module.kernel("k").unwrap();
    let mut memory = crate::sim::Memory::new();
    let mut kind = |how: &Launch, params: &[u8]| {
        launch(&module, &mut memory, kernel, how, params).map_err(|f| f.kind)
    };
    assert!(kind(&blocks(1, 64), &[0; 8]).is_ok());
    assert_eq!(kind(&blocks(1, 32), &[0; 8]), Err(FaultKind::Launch));
    assert_eq!(kind(&blocks(1, 64), &[0; 4]), Err(FaultKind::Launch));
    assert_eq!(
        kind(
            &Launch {
                shared: 200_000,
                ..blocks(1, 64)
            },
            &[0; 8]
        ),
        Err(FaultKind::Launch)
    );
    assert_eq!(
        kind(
            &Launch {
                cluster: [2, 1, 1],
                ..blocks(2, 64)
            },
            &[0; 8]
        ),
        Err(FaultKind::Launch)
    );
}

#[test]
fn hostile_text_is_an_error() {
    let deep = "{".repeat(100_000);
    let many = format!(".reg .b32 %r; mov.b32 %r, {};", "{".repeat(100_000));
    for body in [
        deep.as_str(),
        &many,
        ".reg .b32 %r<4294967295>;",
        ".shared .b8 t[99999999999];",
        "/*",
        "\"",
        "é",
        "mov",
        "@",
    ] {
        assert!(
            Module::parse(&text("sm_80", "", body)).is_err(),
            "{}",
            &body[..body.len().min(20)]
        );
    }
    assert!(Module::parse("").is_err() && Module::parse(".version 8.0\n.target sm_80").is_err());
}
