//! Tensor copies, mbarriers, wgmma, clusters.

use super::{Device, bf16, blocks, small, text};
use crate::sim::{Fault, FaultKind, Launch, Report, Swizzle, TensorMap, TensorType};

/// `n` registers `%NAMEi` in a list.
pub fn list(name: &str, n: usize) -> String {
    (0..n)
        .map(|i| format!("%{name}{i}"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// A map of a row-major bf16 matrix in boxes of 64 columns.
fn map(address: u64, rows: u64, columns: u64, box_rows: u32) -> TensorMap {
    TensorMap {
        dtype: TensorType::Bf16,
        address,
        sizes: vec![columns, rows],
        strides: vec![columns * 2],
        boxes: vec![64, box_rows],
        steps: vec![1, 1],
        swizzle: Swizzle::B128,
        nan: false,
    }
}

pub const PARAMS: &str =
    ".param .align 64 .b8 ma[128], .param .align 64 .b8 mb[128], .param .u64 out, .param .u32 k";

/// 64 x 64 tiles of A · Bᵀ by one warpgroup: boxes by tensor copies, products by wgmma.
pub fn product() -> String {
    let d = list("f", 32);
    let steps: String = (0..4)
        .map(|i| {
            format!(
                "
    add.s64 %rd5, %rd3, {0}; add.s64 %rd6, %rd4, {0};
    wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{{d}}}, %rd5, %rd6, %p{p}, 1, 1, 0, 0;",
                2 * i,
                p = if i == 0 { 3 } else { 5 }
            )
        })
        .collect();
    let stores: String = (0..8)
        .map(|i| {
            format!(
                "
    st.global.v2.f32 [%rd9+{}], {{%f{}, %f{}}}; st.global.v2.f32 [%rd9+{}], {{%f{}, %f{}}};",
                32 * i,
                4 * i,
                4 * i + 1,
                2048 + 32 * i,
                4 * i + 2,
                4 * i + 3
            )
        })
        .collect();
    format!("
    .reg .pred %p<6>; .reg .b32 %r<20>; .reg .b64 %rd<12>; .reg .f32 %f<32>;
    .shared .align 1024 .b8 ta[8192]; .shared .align 1024 .b8 tb[8192]; .shared .align 8 .b64 full;
    ld.param.u64 %rd1, [out]; ld.param.u32 %r1, [k];
    mov.b64 %rd7, ma; cvta.param.u64 %rd7, %rd7; mov.b64 %rd8, mb; cvta.param.u64 %rd8, %rd8;
    mov.u32 %r2, %tid.x; setp.eq.u32 %p1, %r2, 0; mov.u32 %r3, full; mov.u32 %r4, ta; mov.u32 %r5, tb;
    @!%p1 bra READY;
    mbarrier.init.shared::cta.b64 [%r3], 1;
    fence.mbarrier_init.release.cluster;
READY:
    bar.sync 0;
    cvt.u64.u32 %rd3, %r4; shr.u64 %rd3, %rd3, 4; or.b64 %rd3, %rd3, 0x4000004000010000;
    cvt.u64.u32 %rd4, %r5; shr.u64 %rd4, %rd4, 4; or.b64 %rd4, %rd4, 0x4000004000010000;
    mov.b32 %r6, 0; mov.b32 %r7, 0; mov.b32 %r8, 0; mov.u32 %r9, %ctaid.x; shl.b32 %r9, %r9, 6;
LOOP:
    setp.ne.u32 %p3, %r6, 0; setp.eq.u32 %p5, 0, 0;
    @!%p1 bra WAIT;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], 16384;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r4], [%rd7, {{%r6, %r9}}], [%r3];
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r5], [%rd8, {{%r6, %r8}}], [%r3];
WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], %r7;
    @!%p2 bra WAIT;
    wgmma.fence.sync.aligned;{steps}
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    bar.sync 0;
    xor.b32 %r7, %r7, 1; add.u32 %r6, %r6, 64;
    setp.lt.u32 %p4, %r6, %r1;
    @%p4 bra LOOP;
    shr.u32 %r10, %r2, 5; shl.b32 %r10, %r10, 4; and.b32 %r11, %r2, 31; shr.u32 %r12, %r11, 2;
    add.u32 %r10, %r10, %r12; add.u32 %r10, %r10, %r9; and.b32 %r13, %r11, 3;
    mul.wide.u32 %rd9, %r10, 256; mul.wide.u32 %rd10, %r13, 8; add.s64 %rd9, %rd9, %rd10; add.s64 %rd9, %rd9, %rd1;{stores}
    ret;")
}

/// Runs it, for 128 rows of A and 64 of B; results and what they must be.
pub fn run_product(
    body: &str,
    change: impl Fn(&mut TensorMap),
) -> Result<(Vec<f32>, Vec<f32>, Report), Box<Fault>> {
    let (m, n, k) = (128, 64, 128);
    let (a, b) = (small(1, m * k), small(2, n * k));
    let mut device = Device::default();
    let (at_a, at_b) = (device.buffer(&bf16(&a)), device.buffer(&bf16(&b)));
    let mut maps = [
        map(at_a, m as u64, k as u64, 64),
        map(at_b, n as u64, k as u64, 64),
    ];
    maps.iter_mut().for_each(change);
    device.params = maps.iter().flat_map(|m| m.encode().unwrap()).collect();
    let out = device.room(m * n * 4);
    device.params.extend((k as u32).to_le_bytes());
    let report = device.run(&text("sm_90a", PARAMS, body), &blocks(2, 128))?;
    let expected = (0..m * n)
        .map(|i| (0..k).map(|j| a[i / n * k + j] * b[i % n * k + j]).sum())
        .collect();
    Ok((device.floats(out, m * n), expected, report))
}

#[test]
fn a_product_through_tensor_copies() {
    let (out, expected, report) = run_product(&product(), |_| {}).unwrap();
    assert_eq!(out, expected);
    assert_eq!(report.mma_flops, 2 * 128 * 64 * 128);
    assert_eq!(report.global_loaded, 2 * 2 * (64 + 64) * 64 * 2);
    assert_eq!(report.mbarrier_phases, 4);
}

/// Where an element of a matrix lies in shared memory: `width` of the swizzle in bytes, 16
/// for none; all chunks of 16 bytes of 8 rows side by side, 8 rows after 8 rows.
fn image(
    rows: usize,
    k: usize,
    width: usize,
    mn_major: bool,
    at: impl Fn(usize, usize) -> f32,
) -> (Vec<u8>, u64) {
    let (lines, row_bytes) = if mn_major {
        (k, rows * 2)
    } else {
        (rows, k * 2)
    };
    let mut out = vec![0u8; lines * row_bytes];
    // Panels of `width` bytes, each with all lines: neighbours along the line lie
    // `lines * width` apart, 8 lines `8 * width`.
    for line in 0..lines {
        for i in 0..row_bytes / 2 {
            let value = if mn_major { at(i, line) } else { at(line, i) };
            let (panel, inside) = (i * 2 / width, i * 2 % width);
            let plain = panel * lines * width + line * width + inside;
            let (block, chunk, byte) = (plain / 128, plain % 128 / 16, plain % 16);
            let chunk = chunk ^ (block % (width / 16).max(1) * (width > 16) as usize);
            let to = block * 128 + chunk * 16 + byte;
            out[to..to + 2].copy_from_slice(&((value.to_bits() >> 16) as u16).to_le_bytes());
        }
    }
    let mode: u64 = match width {
        128 => 1,
        64 => 2,
        32 => 3,
        _ => 0,
    };
    let (panels, eights) = ((lines * width) as u64, (8 * width) as u64);
    // Without swizzle, and rows contiguous, the two offsets have each other's place.
    let (leading, stride) = if width == 16 && mn_major {
        (eights, panels)
    } else {
        (panels, eights)
    };
    (out, leading >> 4 << 16 | stride >> 4 << 32 | mode << 62)
}

/// One m64n32k16 product of matrices that are copied into shared memory as they are.
fn one(width: usize, mn_a: bool, mn_b: bool, registers: bool) {
    let (m, n, k) = (64, 32, 16.max(width / 2));
    let (a, b) = (small(3, m * k), small(4, n * k));
    let (image_a, desc_a) = image(m, k, width, mn_a, |r, c| a[r * k + c]);
    // A panel of rows has at least the swizzle's width.
    let wide = n.max(width / 2);
    let (image_b, desc_b) = image(if mn_b { wide } else { n }, k, width, mn_b, |r, c| {
        if r < n { b[r * k + c] } else { 0.0 }
    });
    let d = list("f", 16);
    let (operand, flags) = match registers {
        true => (
            "{%r10, %r11, %r12, %r13}".into(),
            format!("1, 1, {}", mn_b as u8),
        ),
        false => (
            "%rd3".to_string(),
            format!("1, 1, {}, {}", mn_a as u8, mn_b as u8),
        ),
    };
    let body = format!("
    .reg .pred %p<4>; .reg .b32 %r<24>; .reg .b64 %rd<12>; .reg .f32 %f<16>;
    .shared .align 1024 .b8 ta[{0}]; .shared .align 1024 .b8 tb[{1}]; .shared .align 8 .b64 full;
    ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; ld.param.u64 %rd9, [out];
    ld.param.u64 %rd3, [da]; ld.param.u64 %rd4, [db];
    mov.u32 %r1, %tid.x; setp.eq.u32 %p1, %r1, 0; mov.u32 %r2, full; mov.u32 %r3, ta; mov.u32 %r4, tb;
    @!%p1 bra READY;
    mbarrier.init.shared::cta.b64 [%r2], 1;
    fence.mbarrier_init.release.cluster;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], {2};
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r3], [%rd1], {0}, [%r2];
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r4], [%rd2], {1}, [%r2];
READY:
    bar.sync 0;
WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], 0;
    @!%p2 bra WAIT;
    cvt.u64.u32 %rd5, %r3; shr.u64 %rd5, %rd5, 4; or.b64 %rd3, %rd3, %rd5;
    cvt.u64.u32 %rd6, %r4; shr.u64 %rd6, %rd6, 4; or.b64 %rd4, %rd4, %rd6;
    shr.u32 %r5, %r1, 5; shl.b32 %r5, %r5, 4; and.b32 %r6, %r1, 31; shr.u32 %r7, %r6, 2;
    add.u32 %r5, %r5, %r7; and.b32 %r8, %r6, 3;
    ld.param.u64 %rd7, [rows]; mul.wide.u32 %rd8, %r5, 32; add.s64 %rd7, %rd7, %rd8;
    mul.wide.u32 %rd8, %r8, 4; add.s64 %rd7, %rd7, %rd8;
    ld.global.u32 %r10, [%rd7]; ld.global.u32 %r11, [%rd7+256]; ld.global.u32 %r12, [%rd7+16]; ld.global.u32 %r13, [%rd7+272];
    wgmma.fence.sync.aligned;
    setp.ne.u32 %p3, 0, 0;
    wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {{{d}}}, {operand}, %rd4, %p3, {flags};
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    mul.wide.u32 %rd10, %r5, 128; add.s64 %rd9, %rd9, %rd10; mul.wide.u32 %rd10, %r8, 8; add.s64 %rd9, %rd9, %rd10;
    {3}
    ret;", image_a.len(), image_b.len(), image_a.len() + image_b.len(),
        (0..4).map(|i| format!("st.global.v2.f32 [%rd9+{}], {{%f{}, %f{}}}; st.global.v2.f32 [%rd9+{}], {{%f{}, %f{}}};\n",
            32 * i, 4 * i, 4 * i + 1, 1024 + 32 * i, 4 * i + 2, 4 * i + 3)).collect::<String>());
    let mut device = Device::default();
    device.buffer(&image_a);
    device.buffer(&image_b);
    let out = device.room(m * n * 4);
    device
        .params
        .extend([desc_a.to_le_bytes(), desc_b.to_le_bytes()].concat());
    let first: Vec<f32> = (0..m * 16).map(|i| a[i / 16 * k + i % 16]).collect();
    device.buffer(&bf16(&first));
    let params = ".param .u64 a, .param .u64 b, .param .u64 out, .param .u64 da, .param .u64 db, .param .u64 rows";
    device
        .run(&text("sm_90a", params, &body), &blocks(1, 128))
        .unwrap_or_else(|f| panic!("{width} {mn_a} {mn_b}: {f}"));
    let expected: Vec<f32> = (0..m * n)
        .map(|i| (0..16).map(|j| a[i / n * k + j] * b[i % n * k + j]).sum())
        .collect();
    assert_eq!(
        device.floats(out, m * n),
        expected,
        "swizzle {width}, A {mn_a}, B {mn_b}, registers {registers}"
    );
}

#[test]
fn every_layout_of_shared_operands() {
    for width in [16, 32, 64, 128] {
        for (mn_a, mn_b) in [(false, false), (true, false), (false, true), (true, true)] {
            one(width, mn_a, mn_b, false);
        }
        one(width, false, true, true);
    }
}

#[test]
fn a_box_of_a_tensor_is_filled_and_stored() {
    // Three dimensions, a box that reaches over two edges, stored again elsewhere.
    let body = "
    .reg .pred %p<4>; .reg .b32 %r<8>; .reg .b64 %rd<4>;
    .shared .align 128 .b8 t[512]; .shared .align 8 .b64 full;
    mov.b64 %rd1, ma; cvta.param.u64 %rd1, %rd1; mov.b64 %rd2, mb; cvta.param.u64 %rd2, %rd2;
    mov.u32 %r1, full; mov.u32 %r2, t; mov.b32 %r3, 4; mov.b32 %r4, -1; mov.b32 %r5, 0;
    mbarrier.init.shared::cta.b64 [%r1], 1;
    fence.proxy.async;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 512;
    cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r2], [%rd1, {%r3, %r4, %r5}], [%r1];
WAIT:
    mbarrier.test_wait.parity.shared::cta.b64 %p1, [%r1], 0;
    @!%p1 bra WAIT;
    cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%rd2, {%r5, %r5, %r5}], [%r2];
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group.read 0;
    ret;";
    let mut device = Device::default();
    let input: Vec<f32> = (0..8 * 3 * 2).map(|i| i as f32 + 1.0).collect();
    let from = device.buffer(
        &input
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect::<Vec<_>>(),
    );
    let to = device.room(512);
    let map = |address, sizes: [u64; 3], nan| TensorMap {
        dtype: TensorType::F32,
        address,
        strides: vec![sizes[0] * 4, sizes[0] * sizes[1] * 4],
        sizes: sizes.to_vec(),
        boxes: vec![8, 4, 4],
        steps: vec![1; 3],
        swizzle: Swizzle::None,
        nan,
    };
    let params = [map(from, [8, 3, 2], false), map(to, [8, 4, 4], false)];
    device.params = params.iter().flat_map(|m| m.encode().unwrap()).collect();
    let head = ".param .align 64 .b8 ma[128], .param .align 64 .b8 mb[128]";
    let report = device
        .run(&text("sm_90a", head, body), &blocks(1, 1))
        .unwrap();
    let at = |x: i64, y: i64, z: i64| {
        let inside = x < 8 && (0..3).contains(&y) && z < 2;
        if inside {
            input[(z * 24 + y * 8 + x) as usize]
        } else {
            0.0
        }
    };
    let expected: Vec<f32> = (0..128)
        .map(|i| at(i % 8 + 4, i / 8 % 4 - 1, i / 32))
        .collect();
    assert_eq!(device.floats(to, 128), expected);
    assert_eq!(report.global_loaded, 4 * 3 * 2 * 4);
}

#[test]
fn a_cluster_shares_memory() {
    // Each CTA writes its rank; reads the other's through mapa; both arrive at CTA 0's mbarrier.
    let body = "
    .reg .pred %p<4>; .reg .b32 %r<12>; .reg .b64 %rd<4>;
    .shared .align 16 .b8 t[128]; .shared .align 8 .b64 bar;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %cluster_ctarank; mov.u32 %r2, %tid.x; mov.u32 %r3, t; mov.u32 %r9, bar;
    setp.eq.u32 %p1, %r2, 0;
    @%p1 mbarrier.init.shared::cta.b64 [%r9], 64;
    shl.b32 %r4, %r2, 2; add.u32 %r5, %r3, %r4;
    mad.lo.u32 %r6, %r1, 100, %r2;
    st.shared.u32 [%r5], %r6;
    barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;
    xor.b32 %r7, %r1, 1;
    mapa.shared::cluster.u32 %r8, %r5, %r7;
    ld.shared::cluster.u32 %r6, [%r8];
    mov.u32 %r10, 0;
    mapa.shared::cluster.u32 %r11, %r9, %r10;
    mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r11];
    setp.ne.u32 %p2, %r1, 0;
    @%p2 bra STORE;
WAIT:
    mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p3, [%r9], 0;
    @!%p3 bra WAIT;
STORE:
    mul.wide.u32 %rd2, %r1, 128; mul.wide.u32 %rd3, %r2, 4; add.s64 %rd1, %rd1, %rd2; add.s64 %rd1, %rd1, %rd3;
    st.global.u32 [%rd1], %r6;
    barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;
    ret;";
    let run = |body: &str| {
        let mut device = Device::default();
        let out = device.room(256);
        let how = Launch {
            cluster: [2, 1, 1],
            ..blocks(2, 32)
        };
        device
            .run(&text("sm_90a", ".param .u64 out", body), &how)
            .map(|_| device.words(out, 64))
    };
    let expected: Vec<u32> = (0..64).map(|i| (1 - i / 32) * 100 + i % 32).collect();
    assert_eq!(run(body).unwrap(), expected);
    // Without the first barrier of the cluster nothing orders them.
    let (first, rest) = body
        .split_once("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;")
        .unwrap();
    let fault = run(&format!("{first}bar.sync 0;{rest}")).unwrap_err();
    assert!(
        matches!(fault.kind, FaultKind::Unwritten | FaultKind::Race),
        "{fault}"
    );
}
