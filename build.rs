//! Compiles the kernels for the CPU, where the software device runs them.

fn main() {
    // Beside cpu.c, the headers that it includes.
    println!("cargo:rerun-if-changed=kernels");
    cc::Build::new()
        .file("kernels/cpu.c")
        .std("c11")
        .warnings(true)
        // Kernels look at one memory as bytes and as words.
        .flag("-fno-strict-aliasing")
        // In a library that is linked into somebody's program, nobody else should see them.
        .flag("-fvisibility=hidden")
        .opt_level(2)
        .compile("stratalloc_kernels");
}
