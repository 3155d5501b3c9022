"""EchoStream and its neighbours, interleaved in one run over loopback.

Goal: ratios that survive a noisy machine. Every contender has a server process and a client
process, both up during the whole run; the contenders take turns within each round, a ratio is
taken between two figures of the same round, and the time that the hypervisor stole is noted
beside every figure. Non-goals: absolute records, networks other than loopback.

Floors, imports go down only::

    cli                                 arguments, what is printed and written
    run, measure, report                round robin; one measurement; statistics and table
    processes, machine, certificate     children and their ends; facts; a throw-away CA
    child                               one server or client process
    load, scenarios                     what is measured
    registry                            who takes part, in what
    contenders/*                        one file per stack, on the floor of
    contract                            what a stack must be able to do
"""
