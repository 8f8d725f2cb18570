import time
from tests.world import *
def test_a(workspace, world, prefect_server):
    from tasks.requests import take_in
    from flows.unlearn import unlearn
    t=time.process_time();w=time.time()
    r=take_in(workspace,MODEL,"object",FORGET)
    print("take",time.process_time()-t,time.time()-w)
    for fs in (FORGET, FORGET_TWO):
        r=take_in(workspace,MODEL,"object",fs)
        t=time.process_time();w=time.time()
        print(unlearn(r.id))
        print("run",time.process_time()-t,time.time()-w)
