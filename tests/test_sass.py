"""Following machine code: loops are gone through as often as their counters say."""

from bench.sass import Thread

CODE = """
        .text.kernel:
        /*0000*/                   LDC.64 R6, c[0x0][0x210] ;
        /*0010*/                   UMOV UR5, 0x20 ;
        /*0020*/                   UMOV UR4, URZ ;
.L_x_0:
        /*0030*/                   FADD R0, R0, R1 ;
        /*0040*/                   MUFU.RCP R2, R0 ;
        /*0050*/              @!P3 BRA `(.L_x_1) ;
        /*0060*/                   CALL.REL.NOINC `(slow) ;
.L_x_1:
        /*0070*/                   UIADD3 UR5, UP0, UR5, -0x1, URZ ;
        /*0080*/                   UIADD3.X UR4, UR4, -0x1, URZ, UP0, !UPT ;
        /*0090*/                   ISETP.NE.U32.AND P1, PT, RZ, UR5, PT ;
        /*00a0*/                   ISETP.NE.U32.AND.EX P1, PT, RZ, UR4, PT, P1 ;
        /*00b0*/               @P1 BRA `(.L_x_0) ;
.L_x_2:
        /*00c0*/                   FMUL R3, R3, R3 ;
        /*00d0*/                   ISETP.LT.AND P2, PT, R3, R6, PT ;
        /*00e0*/               @P2 BRA `(.L_x_2) ;
        /*00f0*/               @P4 EXIT ;
        /*0100*/                   STG.E desc[UR8][R6.64], R3 ;
        /*0110*/                   EXIT ;
"""


def test_counts():
    executed = Thread(CODE, trips=7).run()
    assert executed["FADD"] == 32  # the counter's
    assert executed["FMUL"] == 7  # nothing tells how often: the caller's
    assert "CALL.REL.NOINC" not in executed  # the slow path of a division
    assert executed["STG.E"] == 1  # an exit for threads past the end is not this thread's
    assert sum(executed.values()) == 3 + 32 * 8 + 7 * 3 + 3
