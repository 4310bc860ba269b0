"""Triton kernels of areal_mega.ops, imported as areal_mega.triton_kernels."""

if __name__ == "triton_kernels":
    raise ModuleNotFoundError(
        "this folder is areal_mega.triton_kernels, not the triton_kernels package: "
        "leave the repository's root out of sys.path (python -P does)",
        name="triton_kernels",
    )
