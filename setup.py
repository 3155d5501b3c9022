"""Only the compiled part; every static fact is in pyproject.toml.

``ext/NAME.pyx`` builds ``echostream._ext.NAME``. Switches, read from the environment:

* ``ECHOSTREAM_CYTHON_ANNOTATE=1`` writes the annotated HTML of every source into ``build/``.
* ``ECHOSTREAM_CYTHON_DEBUG=1`` brings bounds checks, overflow checks and assertions back.
* ``ECHOSTREAM_CYTHON_TRACE=1`` makes line coverage of the ``.pyx`` files possible.
* ``ECHOSTREAM_SANITIZE=address,undefined`` compiles with the named sanitizers.
* ``ECHOSTREAM_ABI3=1`` builds one wheel for CPython 3.11 and later.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext as _build_ext

ANNOTATE = os.environ.get("ECHOSTREAM_CYTHON_ANNOTATE") == "1"
DEBUG = os.environ.get("ECHOSTREAM_CYTHON_DEBUG") == "1"
TRACE = os.environ.get("ECHOSTREAM_CYTHON_TRACE") == "1"
ABI3 = os.environ.get("ECHOSTREAM_ABI3") == "1"
SANITIZE = os.environ.get("ECHOSTREAM_SANITIZE", "")

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "overflowcheck": DEBUG,
    "cdivision": True,
    "embedsignature": True,
    "linetrace": TRACE,
}

macros = []
if TRACE:
    macros += [
        ("CYTHON_TRACE", "1"),
        ("CYTHON_TRACE_NOGIL", "1"),
        ("CYTHON_USE_SYS_MONITORING", "0"),
    ]
if ABI3:
    macros.append(("Py_LIMITED_API", "0x030B0000"))
if not DEBUG:
    macros.append(("CYTHON_WITHOUT_ASSERTIONS", "1"))

LINUX_ONLY = {"udp_batch"}  # recvmmsg and sendmmsg

compile_args = [] if sys.platform == "win32" else ["-O3", "-g0", "-fno-math-errno"]
link_args = []
if SANITIZE:
    compile_args = ["-O1", "-g", f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer"]
    link_args = [f"-fsanitize={SANITIZE}"]


class build_ext(_build_ext):
    """Cythonize late, into ``build/``: setup.py itself does not import Cython, and an sdist
    carries no generated C. The directory is keyed by what generated the C, because C made
    by one Cython for one interpreter is not valid for another."""

    def finalize_options(self):
        if not getattr(self.distribution, "_echostream_cythonized", False):
            import Cython
            from Cython.Build import cythonize

            variant = "".join("-" + n for n, on in [("debug", DEBUG), ("abi3", ABI3)] if on)
            c_dir = f"build/cython-{sys.implementation.cache_tag}-{Cython.__version__}{variant}"
            self.distribution.ext_modules[:] = cythonize(
                self.distribution.ext_modules,
                build_dir=None if TRACE else c_dir,  # Cython.Coverage wants the C beside the source
                include_path=["."],
                annotate=ANNOTATE,
                compiler_directives=DIRECTIVES,
            )
            self.distribution._echostream_cythonized = True
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()


setup(
    ext_modules=[
        Extension(
            f"echostream._ext.{source.stem}",
            [source.as_posix()],
            define_macros=macros,
            extra_compile_args=compile_args,
            extra_link_args=link_args,
            py_limited_api=ABI3,
        )
        for source in sorted(Path("ext").glob("*.pyx"))
        if sys.platform == "linux" or source.stem not in LINUX_ONLY
    ],
    cmdclass={"build_ext": build_ext},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
