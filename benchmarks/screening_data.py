import csv, av, torch, numpy as np, os
from pathlib import Path
from torch.nn import functional as F
R=Path('../shared/data'); SIDE=56
def load(path, dt=0.04, most=200):
    frames=[];times=[]
    with av.open(str(path), metadata_errors="ignore") as c:
        s=c.streams.video[0]; s.thread_type="AUTO"
        for fr in c.decode(s):
            if fr.time is None: continue
            times.append(fr.time)
            h,w=fr.height,fr.width; k=SIDE/min(h,w)
            a=torch.from_numpy(fr.to_ndarray(format='rgb24')).permute(2,0,1)[None].float()
            a=F.interpolate(a,(round(h*k),round(w*k)),mode='bilinear',antialias=True)[0]
            frames.append(a.round().clamp(0,255).byte())
            if len(times)>2 and times[-1]-times[0]>most*dt: break
    t=np.array(times)-times[0]
    n=max(1,int(t[-1]/dt)+1)
    idx=np.abs(t[None]-np.arange(n)[:,None]*dt).argmin(1)
    return torch.stack([frames[i] for i in idx])
torch.set_num_threads(2)
out={}
for name in ('fights','weizmann'):
    items=[]
    for l in csv.DictReader(open(R/name/'split.csv')):
        items.append((load(R/name/l['path']), l['class'], int(l['fold']), l['group']))
    out[name]=items; print(name,len(items),np.mean([len(i[0]) for i in items]),flush=True)
items=[]
for p in sorted((R/'unlabelled').rglob('*')):
    if p.suffix.lower() in ('.mp4','.avi','.mov','.mkv','.webm'):
        try: items.append((load(p),None,3,str(p.name)))
        except Exception as e: print(p,e)
out['unlabelled']=items; print(len(items),np.mean([len(i[0]) for i in items]))
torch.save(out,'screening/data.pt')
