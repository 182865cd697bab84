"""Lab: streams x pretexts, screened inside the training folds (fold 0 is never read)."""
import sys, json, math, time, os

import torch, numpy as np
from torch import nn
from torch.nn import functional as F
from dynamonet.model.network import DynamoNet
from dynamonet.model.config import ModelConfig
from dynamonet.model.trunk import Trunk
from dynamonet.model.filtering import apply_filters
from dynamonet.model.prediction import pool_frames, pair_frames, prediction_loss
from benchmarks.learning.arms import MODEL
from benchmarks.learning.networks import HandMadeMotion
torch.set_num_threads(1)
from dynamonet.training.numerics.precision import TimePaddedConv3d
def mend(trunk):
    for i in (2,3):
        for m in trunk.stages[i].modules():
            if type(m) is nn.Conv3d and m.kernel_size==(3,3,3): m.__class__=TimePaddedConv3d

T,PX=8,48
DATA=torch.load('screening/data.pt')
ROWS='screening/rows.jsonl'
CL=lambda x:x.contiguous(memory_format=torch.channels_last_3d)

def take(video,start,stride,n,crop=None,flip=False,px=PX):
    idx=(start+stride*torch.arange(n))%len(video) if len(video)<start+stride*(n-1)+1 else start+stride*torch.arange(n)
    v=video[idx]; h,w=v.shape[-2:]; s=min(h,w)
    if crop is None: side,y,x=s,(h-s)//2,(w-s)//2
    else:
        side=round(s*crop[0]); y=int(crop[1]*(h-side+1)); x=int(crop[2]*(w-side+1))
    v=v[:,:,y:y+side,x:x+side].float()
    v=F.interpolate(v,(px,px),mode='bilinear',align_corners=False)
    if flip: v=v.flip(-1)
    return ((v/255-.45)/.225).transpose(0,1)
def train_clip(video,rng,strides=(2,),n=T+1,flip=True,scale=.8):
    stride=int(rng.choice(strides)); 
    last=len(video)-1-stride*(n-1)
    start=int(rng.integers(0,last+1)) if last>0 else 0
    return take(video,start,stride,n,(rng.uniform(scale,1),rng.random(),rng.random()),flip and rng.random()<.5)

# ---------- rendering
def texture(n,size,g,scales=(4,8,16,32)):
    out=torch.zeros(n,3,size,size)
    for cells in scales:
        wt=torch.rand(n,1,1,1,generator=g)**2
        noise=torch.randn(n,3,cells,cells,generator=g)*torch.rand(n,3,1,1,generator=g)
        noise=noise+torch.randn(n,1,cells,cells,generator=g)
        out+=wt*F.interpolate(noise,size=(size,size),mode='bicubic',align_corners=False)
    hard=(torch.rand(n,1,1,1,generator=g)<.3)
    out=torch.where(hard,torch.tanh(4*out/out.std((1,2,3),keepdim=True)),out)
    out=out/out.std((1,2,3),keepdim=True)*(.3+.9*torch.rand(n,1,1,1,generator=g))
    return out+torch.randn(n,3,1,1,generator=g)*.7
def poses(n,frames,g,speed,size,rot,zoom,spread):
    """(n,frames,2,3) maps frame coords [-1,1] -> canonical."""
    def u(a,b): return a+(b-a)*torch.rand(n,1,generator=g)
    t=torch.arange(frames).float()[None]-(frames-1)/2
    ang=u(0,2*math.pi); sp=u(*speed)*2/PX; bend=torch.randn(n,1,generator=g)*.12
    dirs=ang+bend*t
    vx,vy=sp*torch.cos(dirs),sp*torch.sin(dirs)
    x=u(-spread,spread)+vx.cumsum(1)-vx.sum(1,keepdim=True)/2; y=u(-spread,spread)+vy.cumsum(1)-vy.sum(1,keepdim=True)/2
    osc=(torch.rand(n,1,generator=g)<.3).float()
    ph=u(0,6.28); om=u(.6,2.2); am=u(1,4)*2/PX*osc
    x=x+am*torch.cos(ang+1)*torch.sin(om*t+ph); y=y+am*torch.sin(ang+1)*torch.sin(om*t+ph)
    turn=torch.randn(n,1,generator=g)*rot; zo=torch.randn(n,1,generator=g)*zoom
    swing=(torch.rand(n,1,generator=g)<.3).float()*u(.1,.5)*torch.sin(om*t+ph)
    a=u(0,6.28)*(spread>0)+turn*t+swing*(spread>0); s=u(*size)*torch.exp(zo*t)
    c,si=torch.cos(a)/s,torch.sin(a)/s
    return torch.stack([torch.stack([c,si,-(c*x+si*y)],-1),torch.stack([-si,c,si*x-c*y],-1)],-2)
YY,XX=torch.meshgrid(*(torch.linspace(-1+1/PX,1-1/PX,PX),)*2,indexing='ij')
P=torch.stack([XX,YY,torch.ones_like(XX)],-1).reshape(-1,3)
def inv(th):
    A=th[...,:2];b=th[...,2:]; Ai=torch.linalg.inv(A); return torch.cat([Ai,-Ai@b],-1)
def flow_of(th):
    """th (n,F,2,3) -> d (n,F-1,2,H,W) pixels: I[t+1](p)=I[t](p+d)"""
    c=P@th[:,1:].transpose(-1,-2)            # n,F-1,HW,2
    c=torch.cat([c,torch.ones_like(c[...,:1])],-1)
    q=c@inv(th[:,:-1]).transpose(-1,-2)
    d=(q-P[:,:2])*PX/2
    return d.transpose(-1,-2).reshape(*d.shape[:2],2,PX,PX)
def warp(pic,th,pad):
    n,f=th.shape[:2]
    grid=(P@th.transpose(-1,-2)).reshape(n*f,PX,PX,2)
    pic=pic[:,None].expand(-1,f,-1,-1,-1).flatten(0,1)
    return F.grid_sample(pic,grid,padding_mode=pad,align_corners=False).unflatten(0,(n,f))
def outline(n,g):
    y,x=torch.meshgrid(*(torch.linspace(-1,1,48),)*2,indexing='ij')
    lob=torch.randint(0,5,(n,1,1),generator=g); ph=6.28*torch.rand(n,1,1,generator=g)
    asp=.45+.55*torch.rand(n,1,1,generator=g)
    edge=.72+.2*torch.cos(lob*torch.atan2(y,x)+ph)
    return ((edge-((x/asp)**2+y**2).sqrt())*12).sigmoid()[:,None]
def paste(frames,flow,known,g,count,share=1.,pictures=None):
    """frames (B,F,3,H,W). Returns with movers pasted over."""
    B,Fr=frames.shape[:2]
    for k in range(count):
        on=(torch.rand(B,generator=g)<share)&(k<torch.randint(1,count+1,(B,),generator=g))
        pic=texture(B,64,g,(2,4,8,16)) if pictures is None else pictures(g)
        th=poses(B,Fr,g,(0.4,3.5),(.25,.6),.05,.02,.75)
        layer=warp(torch.cat([pic,F.interpolate(outline(B,g),pic.shape[-1])],1),th,'zeros')
        m=layer[:,:,3:]*on[:,None,None,None,None]
        frames=frames*(1-m)+layer[:,:,:3]*m
        top=m[:,1:]>.5
        flow=torch.where(top,flow_of(th),flow)
        known=known|top[:,:,0]
    return frames,flow,known
def rendered(B,g,Fr=T+1):
    still=(torch.rand(B,1,1,1,generator=g)<.5)
    bg=texture(B,96,g)
    th=poses(B,Fr,g,(0,1.5),(1.4,3.),.006,.004,0.)
    th=torch.where(still,th[:,:1],th)
    frames=warp(bg,th,'reflection'); flow=flow_of(th); known=torch.ones(B,Fr-1,PX,PX,dtype=torch.bool)
    frames,flow,known=paste(frames,flow,known,g,4)
    frames=frames.clamp(-2.2,2.6)+.05*torch.rand(B,1,1,1,1,generator=g)*torch.randn(frames.shape,generator=g)
    return CL(frames.transpose(1,2)),flow,known
_BANK=[]
def bank(B,g,count=3000):
    """Rendered clips of a bank, flipped, transposed, colours permuted."""
    if not _BANK:
        path='screening/bank.pt'
        if os.path.exists(path): _BANK.extend(torch.load(path))
        else:
            g0=torch.Generator().manual_seed(7); parts=[rendered(50,g0) for _ in range(count//50)]
            _BANK.extend([torch.cat([p[0] for p in parts]).half(),torch.cat([p[1] for p in parts]).half()]); torch.save(list(_BANK),path)
    ids=torch.randint(len(_BANK[0]),(B,),generator=g); x=_BANK[0][ids].float(); f=_BANK[1][ids].float()
    fx,fy,tr,ne=(bool(v) for v in torch.rand(4,generator=g)<.5)
    x=x[:,torch.randperm(3,generator=g)]
    if fx: x=x.flip(-1); f=f.flip(-1)*torch.tensor([-1.,1.]).view(1,1,2,1,1)
    if fy: x=x.flip(-2); f=f.flip(-2)*torch.tensor([1.,-1.]).view(1,1,2,1,1)
    if tr: x=x.transpose(-1,-2); f=f.transpose(-1,-2).flip(2)
    if ne: x=-x
    return CL(x),f,torch.ones(B,f.shape[1],PX,PX,dtype=torch.bool)
def movers(frames,g):
    f=frames.transpose(1,2)
    def pictures(g):
        B=len(f); src=f[torch.randperm(B,generator=g),torch.randint(f.shape[1],(B,),generator=g)]
        return src
    flow=torch.zeros(len(f),f.shape[1]-1,2,PX,PX); known=torch.zeros(len(f),f.shape[1]-1,PX,PX,dtype=torch.bool)
    f,flow,known=paste(f,flow,known,g,3,.7,pictures)
    return CL(f.transpose(1,2)),flow,known

def splat(flow,K,level,gh):
    """soft targets (B,N,K*K,gh,gh) and weights (B,N,gh,gh)"""
    d=flow/level; r=torch.arange(K)-K//2
    wx=(1-(d[:,:,0:1]-r.view(1,1,-1,1,1)).abs()).clamp(min=0); wy=(1-(d[:,:,1:2]-r.view(1,1,-1,1,1)).abs()).clamp(min=0)
    t=(wy[:,:,:,None]*wx[:,:,None]).flatten(2,3)
    return t
def known_loss(filters,flow,known,level):
    """filters (B,N,KK,gh,gw)"""
    B,N,KK,gh,gw=filters.shape; K=round(KK**.5)
    flow=flow[:,:N]; known=known[:,:N]
    k=PX//gh
    if k>1:
        off=k//2
        fl=flow[...,off::k,off::k]; kn=known[...,off::k,off::k]
    else: fl,kn=flow,known
    t=splat(fl,K,level,gh); w=t.sum(2)*kn
    ce=-(t*(filters+1e-6).log()).sum(2)
    return (ce*kn).sum()/w.sum().clamp(min=1)

# ---------- networks
class Grid(nn.Module):
    """The product's: trunk -> grid filters."""
    def __init__(self,classes,inp='rgb',size=5,cell=4,targets='within_clip',horizon=1):
        super().__init__()
        self.cfg=MODEL|{'num_classes':classes,'use_dmr':False,'filters':{'cell_px':cell,'size':size},'targets':targets,'horizon':horizon}
        self.net=DynamoNet(ModelConfig.model_validate(self.cfg)); mend(self.net.trunk); self.inp=inp
        if inp=='both':
            c=self.net.trunk.stem.conv; n=nn.Conv3d(6,c.out_channels,c.kernel_size,c.stride,c.padding,bias=False); nn.init.kaiming_normal_(n.weight,mode='fan_out',nonlinearity='relu'); self.net.trunk.stem.conv=n
        self.beyond=self.net.config.frames_beyond
    def view(self,x):
        if self.inp=='rgb': return x
        d=x.diff(dim=2,prepend=x[:,:,:1])*2
        return CL(d if self.inp=='diff' else torch.cat([x,d],1))
    def logits(self,x): 
        f=self.net.trunk(self.view(x)); 
        return self.net.classifier(f,f.new_zeros(len(f),0))
    def pretext(self,frames,flow,known,wknown,wpred=1.):
        x=frames[:,:,:T]; f=self.net.trunk(self.view(x)); n=T if self.net.config.targets=='within_clip' else self.net.config.horizon
        fl=self.net.motion(f,n); loss=0
        from dynamonet.model.prediction import predict_levels
        if wpred:
            pr=predict_levels(x,fl,(2,),self.net.config.targets); pairs=pair_frames(frames[:,:,:T+self.beyond],pr,(2,),self.net.config.targets)
            loss=loss+wpred*prediction_loss(pairs,'mse')
        if wknown: loss=loss+wknown*known_loss(fl[:,0],flow,known,2)
        return loss
    def groups(self): return [self.net.trunk],[self.net.classifier]
class Matcher(nn.Module):
    """Filters by matching early features at half resolution."""
    def __init__(self,dim=24,K=7):
        super().__init__(); self.K=K
        self.enc=nn.Sequential(nn.Conv2d(3,dim,5,2,2),nn.BatchNorm2d(dim),nn.ReLU(),nn.Conv2d(dim,dim,3,1,1),nn.BatchNorm2d(dim),nn.ReLU(),nn.Conv2d(dim,dim,3,1,1))
        self.sharp=nn.Parameter(torch.tensor(2.5)); self.rest=nn.Parameter(torch.tensor(2.0))
        r=torch.arange(K).float()-K//2
        self.register_buffer('u',r.repeat(K)); self.register_buffer('v',r.repeat_interleave(K))
    def forward(self,x):
        """(B,3,N+1,H,W) -> filters (B,N,KK,h,w), f over t+1 looking back at t."""
        B,_,n,H,W=x.shape; K=self.K; r=K//2
        z=self.enc(x.transpose(1,2).flatten(0,1).contiguous()).float(); h,w=z.shape[-2:]
        z=F.normalize(z-z.mean((2,3),keepdim=True),dim=1,eps=1e-3).unflatten(0,(B,n))
        q=z[:,1:].flatten(0,1).permute(0,2,3,1)             # M,h,w,C
        k=F.pad(z[:,:-1].flatten(0,1),(r,r,r,r)).permute(0,2,3,1)
        M=len(q); out=[]
        for dy in range(K):
            pr=q.reshape(M*h,w,-1)@k[:,dy:dy+h].reshape(M*h,w+2*r,-1).mT
            sk=F.pad(pr.flatten(1),(0,w)).view(M*h,w,w+2*r+1)[:,:,:K]
            out.append(sk.view(M,h,w,K))
        lg=torch.stack(out,3).flatten(3)*self.sharp.exp()
        c=torch.zeros(K*K); c[K*K//2]=1
        lg=lg+c*self.rest
        return lg.softmax(-1).view(B,n-1,h,w,K*K).permute(0,1,4,2,3)
    def field(self,f):
        u=torch.einsum('bnkhw,k->bnhw',f,self.u); v=torch.einsum('bnkhw,k->bnhw',f,self.v)
        u,v=(a-a.flatten(2).median(2).values[...,None,None] for a in (u,v))
        m=1-f[:,:,self.K**2//2]
        return CL(torch.stack([u,v,m],1))
class Field(nn.Module):
    def __init__(self,classes,source='match',freeze=True):
        super().__init__(); self.freeze=freeze
        tc=ModelConfig.model_validate(MODEL).trunk
        self.match=Matcher() if source=='match' else None
        cfg=ModelConfig.model_validate(MODEL|{'num_classes':classes,'use_dmr':False})
        if source!='match': self.hand=HandMadeMotion(cfg)
        self.trunk=Trunk(tc.model_copy(update={'spatial_strides':(1,2,2,1)}),T-1); mend(self.trunk)
        from dynamonet.model.classifier import Classifier
        self.head=Classifier(cfg,classes,0); self.beyond=1
        self.fore=None
    def field(self,x):
        if self.match is None: return self.hand.field(x)
        if self.freeze:
            with torch.no_grad(): return self.match.field(self.match(x))
        return self.match.field(self.match(x))
    def logits(self,x):
        f=self.trunk(self.field(x)); return self.head(f,f.new_zeros(len(f),0))
    def pretext(self,frames,flow,known,wknown,wpred=1.):
        fl=self.match(frames); pooled=pool_frames(frames,2); loss=0
        if wpred:
            pr=apply_filters(pooled[:,:,:-1].float(),fl.float()); loss=loss+wpred*F.mse_loss(pr,pooled[:,:,1:].float())
        if wknown:
            k=2; loss=loss+wknown*known_loss(fl,flow,known,2)
        return loss
    def groups(self): 
        a=[self.trunk]+([self.match] if self.match is not None and not self.freeze else [])
        return a,[self.head]

def rate(done,warm=.05): return done/warm if done<warm else .5*(1+math.cos(math.pi*(done-warm)/(1-warm)))
def pool_batch(B,rng,strides,pool):
    return CL(torch.stack([train_clip(pool[int(rng.integers(len(pool)))],rng,strides) for _ in range(B)]))
def pool_videos():
    return [v for v,_,f,_ in DATA['unlabelled']]+[v for n in ('fights','weizmann') for v,_,f,_ in DATA[n] if f!=0]
def pretrain(model,spec,seed,log=print):
    """spec: steps,batch,real(share),movers,known,pred,strides"""
    rng=np.random.default_rng(seed); g=torch.Generator().manual_seed(seed)
    pool=pool_videos(); opt=torch.optim.AdamW(model.parameters(),spec.get('lr',2e-3),weight_decay=.05)
    model.train(); t0=time.time(); acc=[]
    for s in range(spec['steps']):
        B=spec['batch']; real=round(B*spec.get('real',1.)); parts=[]
        if real:
            x=pool_batch(real,rng,spec.get('strides',(2,)),pool)
            if spec.get('movers'): parts.append(movers(x,g))
            else: parts.append((x,torch.zeros(real,T,2,PX,PX),torch.zeros(real,T,PX,PX,dtype=torch.bool)))
        if B-real: parts.append(bank(B-real,g))
        x,flow,known=(torch.cat(p) for p in zip(*parts)); x=CL(x)
        for gr in opt.param_groups: gr['lr']=spec.get('lr',2e-3)*rate(s/spec['steps'])
        with torch.autocast('cpu',torch.bfloat16): loss=model.pretext(x,flow,known,spec.get('known',0.),spec.get('pred',1.))
        opt.zero_grad(); loss.backward(); nn.utils.clip_grad_norm_(model.parameters(),1.); opt.step(); acc.append(float(loss))
        if (s+1)%200==0: log(f"  pretrain {s+1} loss {np.mean(acc[-200:]):.4f} {time.time()-t0:.0f} s",flush=True)
    return time.time()-t0
CLASSES={n:sorted({c for _,c,_,_ in DATA[n]}) for n in ('fights','weizmann')}
def parts(name,train_fold,seed,share):
    rng=np.random.default_rng(seed); tr=[i for i,v in enumerate(DATA[name]) if v[2]==train_fold]; te=[i for i,v in enumerate(DATA[name]) if v[2]==3-train_fold]
    if share<1:
        keep=[]
        for c in CLASSES[name]:
            own=[i for i in tr if DATA[name][i][1]==c]; rng.shuffle(own); keep+=own[:max(1,round(share*len(own)))]
        tr=keep
    return tr,te
def finetune(model,name,train_fold,seed,*,steps=250,lr=(3e-3,1e-3),head_first=0,share=1.,batch=8,flip=True):
    rng=np.random.default_rng(1000+seed); torch.manual_seed(seed)
    tr,te=parts(name,train_fold,seed,share); cls=CLASSES[name]
    body,head=model.groups()
    pb=[p for m in body for p in m.parameters()]; ph=[p for m in head for p in m.parameters()]
    opt=torch.optim.AdamW([{'params':ph,'base':lr[0]},{'params':pb,'base':lr[1]}],weight_decay=.05)
    model.train(); order=[]
    for s in range(steps):
        ids=[]
        while len(ids)<batch:
            if not order: order=list(rng.permutation(tr))
            ids.append(order.pop())
        x=CL(torch.stack([train_clip(DATA[name][i][0],rng,n=T,flip=flip) for i in ids])); y=torch.tensor([cls.index(DATA[name][i][1]) for i in ids])
        f=s/steps
        for gr in opt.param_groups:
            gr['lr']=gr['base']*rate(f)
        if head_first and s<head_first: opt.param_groups[1]['lr']=0.
        with torch.autocast('cpu',torch.bfloat16): loss=F.cross_entropy(model.logits(x).float(),y)
        opt.zero_grad(); loss.backward(); nn.utils.clip_grad_norm_(model.parameters(),1.); opt.step()
    model.eval(); probs=[]
    with torch.no_grad(), torch.autocast('cpu',torch.bfloat16):
        for i in te:
            v=DATA[name][i][0]; last=max(0,len(v)-1-2*(T-1))
            x=CL(torch.stack([take(v,int(a),2,T) for a in np.linspace(0,last,4)]))
            probs.append(model.logits(x).float().softmax(1).mean(0))
    probs=torch.stack(probs); y=torch.tensor([cls.index(DATA[name][i][1]) for i in te])
    return float((probs.argmax(1)==y).float().mean()),probs.tolist()
def done():
    return {json.loads(l)['key'] for l in open(ROWS)} if os.path.exists(ROWS) else set()
def run(arm,make,spec,*,seeds=(0,1),rates=((3e-3,1e-3),),steps=250,share={'fights':.25,'weizmann':1.},tag=''):
    had=done(); res={}
    for seed in seeds:
        todo=[(n,fo,r) for r in rates for n in ('fights','weizmann') for fo in (1,2)]
        todo=[t for t in todo if f"{arm}|{t[0]}|{t[1]}|{t[2]}|{seed}" not in had]
        if not todo: continue
        state=None; path=f'screening/models/{arm.split("@")[0]}_{seed}.pt'; secs=0
        if spec:
            os.makedirs('screening/models',exist_ok=True)
            if os.path.exists(path): state=torch.load(path)
            else:
                torch.manual_seed(seed); m=make(2); secs=pretrain(m,spec,seed); state=m.state_dict(); torch.save(state,path)
        for n,fo,r in todo:
            torch.manual_seed(100+seed); m=make(len(CLASSES[n]))
            if state is not None:
                own={k:v for k,v in state.items() if 'classifier' not in k and not k.startswith('head')}
                miss=m.load_state_dict(own,strict=False)
            t0=time.time(); acc,pr=finetune(m,n,fo,seed,steps=steps,lr=r,share=share[n])
            with open(ROWS,'a') as f: f.write(json.dumps({'key':f"{arm}|{n}|{fo}|{r}|{seed}",'arm':arm,'set':n,'fold':fo,'rate':r,'seed':seed,'acc':acc,'secs':time.time()-t0,'pre':secs,'probs':pr})+'\n')
    rows=[json.loads(l) for l in open(ROWS)]
    for r in rates:
        out=[]
        for n in ('fights','weizmann'):
            a=[x['acc'] for x in rows if x['arm']==arm and x['set']==n and tuple(x['rate'])==r]
            by=[np.mean([x['acc'] for x in rows if x['arm']==arm and x['set']==n and tuple(x['rate'])==r and x['seed']==s]) for s in seeds]
            out.append(f"{n} {100*np.mean(a):.1f} ({', '.join(f'{100*b:.0f}' for b in by)})")
        print(f"{arm:28s} {r} ",' | '.join(out),flush=True)
