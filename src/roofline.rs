//! The arithmetic that this machine can do at most, by a loop that Kiln's own code
//! generator compiles: the same compiler, registers and target as the kernels that are
//! measured against it.

use kiln_codegen::emit::{Elem, Emitter, Ty};
use kiln_codegen::{CodegenError, CpuTarget};
use kiln_runtime::elf::Code;
use kiln_runtime::roofline::FmaLoop;

/// Independent chains: a fused multiply-add takes 4 or 5 cycles, and two start each.
const CHAINS: u32 = 12;
const SYMBOL: &str = "fma_peak";

/// The loop for a target that this machine runs.
pub fn fma_loop(target: &CpuTarget) -> Result<FmaLoop, CodegenError> {
    let failed = |message: String| CodegenError {
        stage: "the loop that measures arithmetic",
        message,
    };
    if !target.runs_here() {
        let name = &target.name;
        return Err(failed(format!("this machine does not run {name}")));
    }
    let lanes = target.f32_lanes();
    let object = kiln_codegen::compile(&[emit(target, lanes)], target)?;
    let code = Code::load(&object).map_err(|e| failed(e.to_string()))?;
    let kernel = code
        .kernel(SYMBOL)
        .ok_or_else(|| failed("it has no symbol".into()))?;
    Ok(FmaLoop {
        made_by: "a loop of Kiln's code generator",
        flops: f64::from(2 * CHAINS * lanes),
        run: Box::new(move |iterations| {
            // The closure owns what the pointer is into.
            let _code = &code;
            let mut out = [0f32; 16];
            let (none, at) = (std::ptr::null(), out.as_mut_ptr().cast());
            // SAFETY: the loop reads no arguments and writes one register of at most
            // 16 lanes to its scratch.
            unsafe { kernel(none, std::ptr::null(), 0, iterations, at) };
            std::hint::black_box(out);
        }),
    })
}

fn emit(target: &CpuTarget, lanes: u32) -> String {
    Emitter::kernel(SYMBOL, target, |e, k| {
        let ty = Ty::vector(Elem::F32, lanes);
        let (x, y, one) = (e.float(ty, 1.000_001), e.float(ty, 1e-9), e.i64(1));
        let start: Vec<_> = (0..CHAINS).map(|i| e.float(ty, f64::from(i))).collect();
        let ends = e.for_loop(k.begin, k.end, one, &start, |e, _, acc| {
            acc.iter().map(|&a| e.fma(a, x, y)).collect()
        });
        // Every chain is used, or the compiler would drop it.
        let sum = ends.into_iter().fold(y, |s, a| e.add(s, a));
        e.store(sum, k.scratch);
        e.int(Ty::scalar(Elem::I32), 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_is_fused_multiply_adds_in_registers() {
        for target in [CpuTarget::x86_64_v3(), CpuTarget::x86_64_v4()] {
            let text = emit(&target, target.f32_lanes());
            let asm = kiln_codegen::dump(&[text], &target, kiln_codegen::Dump::Asm).unwrap();
            let fused = asm.matches("vfmadd").count();
            assert!(fused >= CHAINS as usize, "{fused} in\n{asm}");
        }
    }

    #[test]
    fn the_machine_runs_it() {
        let Some(target) = CpuTarget::host() else {
            return;
        };
        let fma = fma_loop(&target).unwrap();
        let start = std::time::Instant::now();
        (fma.run)(1 << 20);
        let gflops = fma.flops * f64::from(1 << 20) / start.elapsed().as_secs_f64() / 1e9;
        assert!(gflops > 1.0 && gflops < 1_000.0, "{gflops}");
    }
}
