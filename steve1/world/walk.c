// Eight rays at a time: what each ray of a view meets, to the last bit as `cast_ray` in nbs/world/drawing.ipynb finds it.
// A lane is a ray. Lanes step without waiting for the bytes that they meet; those are only compared, and a lane whose
// byte is not its medium (air or water) or whose way is over is looked at. A lane that has ended steps on unheeded.
#include <math.h>
#include <stdint.h>

struct hit { double dx, dy, dz, t, swum, surface; int32_t x, y, z; uint8_t kind, axis, row, col; };

#if defined(__x86_64__)
#include <immintrin.h>
#define WIDE __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define ALL(x) _mm512_set1_epi64(x)

enum { AIR=0, WATER=5, LEAVES=7, TALL_GRASS=8, DANDELION=10,
       PASSABLE = 1<<AIR | 1<<WATER | 1<<LEAVES | 7<<TALL_GRASS,    // kinds that do not always stop a ray
       WRAP=127, HEIGHT=48, CELLS=128*HEIGHT*128, FAR=40,
       N=8, ACROSS=4, DOWN=N/ACROSS,                                // rays of a packet: four across, two down
       BIAS=256 };                                                  // keeps the fields of a cell's number positive
typedef const uint8_t textures[3][16][16][4];                       // of a kind: face, row, column, RGBA
struct ray { double o[3], dx, dy, dz, t; int x, y, z, axis; };      // at cell (x,y,z), which it entered across axis

// The two crossed planes of a plant: distance, 1e9 where the ray misses them
static double plant_hit(textures *tex, int kind, const struct ray *r, uint8_t *row, uint8_t *col)
{
    double lx = r->o[0]-r->x, ly = r->o[1]-r->y, lz = r->o[2]-r->z, best = 1e9;
    for (int k = 0; k<2; k++) {
        double den = k==0 ? r->dx-r->dz : r->dx+r->dz, num = k==0 ? lz-lx : 1-lx-lz;
        double t = fabs(den)>1e-6 ? num/den : -1.;
        if (!(t>.02 && t<best)) continue;
        double x = lx+r->dx*t, y = ly+r->dy*t, z = lz+r->dz*t;
        if (!(x>=0 && x<1 && y>=0 && y<1 && z>=0 && z<1)) continue;
        int u = (int)(x*16), v = 15-(int)(y*16);
        if (tex[kind][0][v][u][3]>0) { best = t; *row = v; *col = u; }
    }
    return best;
}

// Distance at which a block of a kind stops a ray; 1e9: it does not
static double stops(textures *tex, int kind, const struct ray *r, uint8_t *row, uint8_t *col)
{
    *row = *col = 0;
    if (kind>=TALL_GRASS && kind<=DANDELION) return plant_hit(tex, kind, r, row, col);
    if (kind!=LEAVES || r->t>14) return r->t;
    double hx = r->o[0]+r->dx*r->t-r->x, hy = r->o[1]+r->dy*r->t-r->y, hz = r->o[2]+r->dz*r->t-r->z;
    double u = r->axis==0 ? hz : hx, v = r->axis==1 ? hz : hy;
    int face = r->axis!=1 ? 0 : r->dy>0 ? 2 : 1;
    return tex[kind][face][15-((int)(v*15.999)&15)][(int)(u*15.999)&15][3]>0 ? r->t : 1e9;
}

// The bytes of eight cells. Zen 4 takes twice as long for its own gather instruction
WIDE static inline __m128i look_up(const uint8_t *blocks, __m512i cell)
{
    const __m512i fields = ALL((int64_t)WRAP<<32 | 63<<16 | WRAP), strides = ALL((int64_t)HEIGHT*128<<32 | 128<<16 | 1);
    __m512i m = _mm512_madd_epi16(_mm512_and_si512(cell, fields), strides);
    __m512i at = _mm512_and_si512(_mm512_add_epi64(m, _mm512_srli_epi64(m, 32)), ALL(0xffffff));
    int64_t i[N];
    _mm512_storeu_si512(i, _mm512_min_epu64(at, ALL(CELLS-1)));      // a lane that has ended may be below the world
    __m128i low = _mm_cvtsi32_si128(blocks[i[0]]), high = _mm_cvtsi32_si128(blocks[i[4]]);
    low = _mm_insert_epi8(low, blocks[i[1]], 1);  high = _mm_insert_epi8(high, blocks[i[5]], 1);
    low = _mm_insert_epi8(low, blocks[i[2]], 2);  high = _mm_insert_epi8(high, blocks[i[6]], 2);
    low = _mm_insert_epi8(low, blocks[i[3]], 3);  high = _mm_insert_epi8(high, blocks[i[7]], 3);
    return _mm_unpacklo_epi32(low, high);
}

// eye: x, y, z; forward, right and up as in `_view_basis`; tan of half the view; in water?; height of the highest block
WIDE void cast_rows(const uint8_t *blocks, textures *tex, const double *eye, int h, int w, int row0, int n,
                    struct hit *hits)
{
    double ox = eye[0], oy = eye[1], oz = eye[2], tan = eye[11], wide = tan*16/9, du = 2*wide/w, lid = eye[13]+1;
    const double *b = eye+3;
    int jx = floor(ox), jy = floor(oy), jz = floor(oz), ax0 = (jx&WRAP)+BIAS-jx, az0 = (jz&WRAP)+BIAS-jz;
    for (int i0 = 0; i0<n; i0 += DOWN) for (int j0 = 0; j0<w; j0 += ACROSS) {
        double dx[N], dy[N], dz[N], ax[N], ay[N], az[N], cx[N], cy[N], cz[N], far[N];
        double t_at[N], swum[N], entered[N], surface[N];
        int64_t sx[N], sy[N], sz[N], cell_at[N], axis_at[N];
        int32_t met[N], wet[N];
        uint8_t row[N], col[N];
        __mmask8 live = 0, x = 0, y = 255;                           // lanes not ended; lanes that crossed x or y last
        for (int l = 0; l<N; l++) {
            double v = (1-2*(row0+i0+l/ACROSS+.5)/h)*tan, u = (j0+l%ACROSS+.5)*du-wide, k = 1/sqrt(1+u*u+v*v);
            dx[l] = (b[0]+b[3]*u+b[5]*v)*k; dy[l] = (b[1]+b[6]*v)*k; dz[l] = (b[2]+b[4]*u+b[7]*v)*k;
        }
        for (int l = 0; l<N; l++) {
            double px = fabs(dx[l]), py = fabs(dy[l]), pz = fabs(dz[l]);
            ax[l] = 1/(px>1e-9 ? px : 1e-9); ay[l] = 1/(py>1e-9 ? py : 1e-9); az[l] = 1/(pz>1e-9 ? pz : 1e-9);
            cx[l] = (dx[l]>0 ? jx+1-ox : ox-jx)*ax[l];
            cy[l] = (dy[l]>0 ? jy+1-oy : oy-jy)*ay[l];
            cz[l] = (dz[l]>0 ? jz+1-oz : oz-jz)*az[l];
            double up = (lid-oy)*ay[l]-1e-9;
            far[l] = dy[l]>0 && up<FAR ? up : FAR;
        }
        for (int l = 0; l<N; l++) {
            sx[l] = (dx[l]>0 ? 1 : -1)*((int64_t)1<<32); sy[l] = dy[l]>0 ? 1<<16 : -(1<<16); sz[l] = dz[l]>0 ? 1 : -1;
        }
        for (int l = 0; l<N; l++) {
            entered[l] = swum[l] = 0; surface[l] = -1; met[l] = AIR; row[l] = col[l] = 0;
            live |= (i0+l/ACROSS<n && j0+l%ACROSS<w)<<l;
        }
        __m512d tx = _mm512_loadu_pd(cx), ty = _mm512_loadu_pd(cy), tz = _mm512_loadu_pd(cz), t = _mm512_setzero_pd();
        const __m512d px = _mm512_loadu_pd(ax), py = _mm512_loadu_pd(ay), pz = _mm512_loadu_pd(az);
        const __m512d reach = _mm512_loadu_pd(far);
        const __m512i stepx = _mm512_loadu_si512(sx), stepy = _mm512_loadu_si512(sy), stepz = _mm512_loadu_si512(sz);
        __m512i cell = ALL((int64_t)(jx+ax0)<<32 | jy<<16 | (jz+az0));
        __m128i medium = _mm_set1_epi8(eye[12]>0 ? WATER : AIR);
        const __mmask8 inside = live;
        while (1) {
            __m128i kind = look_up(blocks, cell);
            live &= _mm512_cmp_pd_mask(t, reach, _CMP_LT_OQ);
            __mmask8 event = _mm_cmpneq_epi8_mask(kind, medium) & live;
            if (event || !live) {
                __m256i k = _mm256_cvtepu8_epi32(kind);
                __mmask8 maybe = _mm256_test_epi32_mask(_mm256_srlv_epi32(_mm256_set1_epi32(PASSABLE), k),
                                                        _mm256_set1_epi32(1)) & event;
                __m512i axis = _mm512_mask_mov_epi64(_mm512_mask_mov_epi64(ALL(2), y, ALL(1)), x, ALL(0));
                _mm512_mask_storeu_pd(t_at, event, t);
                _mm512_mask_storeu_epi64(cell_at, event, cell);
                _mm512_mask_storeu_epi64(axis_at, event, axis);
                _mm256_mask_storeu_epi32(met, event, k);
                live &= ~event | maybe;
                __mmask8 dives = 0, surfaces = 0, swims = _mm_test_epi8_mask(medium, medium);
                for (int r = maybe; r; r &= r-1) {
                    int l = __builtin_ctz(r), kd = met[l];
                    met[l] = AIR;
                    if (kd==WATER) {
                        dives |= 1<<l; entered[l] = t_at[l];
                        if (surface[l]<0) surface[l] = t_at[l];
                        continue;
                    }
                    if (kd!=AIR) {
                        struct ray ray = { { ox, oy, oz }, dx[l], dy[l], dz[l], t_at[l], (cell_at[l]>>32)-ax0,
                                           cell_at[l]>>16&0xffff, (cell_at[l]&0xffff)-az0, axis_at[l] };
                        double s = stops(tex, kd, &ray, row+l, col+l);
                        if (s<1e8) { t_at[l] = s; met[l] = kd; live &= ~(1<<l); continue; }
                        row[l] = col[l] = 0;
                    }
                    if (swims>>l&1) { swum[l] += t_at[l]-entered[l]; surfaces |= 1<<l; }
                }
                medium = _mm_mask_mov_epi8(medium, dives, _mm_set1_epi8(WATER));
                medium = _mm_mask_mov_epi8(medium, surfaces, _mm_setzero_si128());
                if (!live) break;
            }
            __mmask8 before = _mm512_cmp_pd_mask(ty, tz, _CMP_LT_OQ);
            x = _mm512_mask_cmp_pd_mask(_mm512_cmp_pd_mask(tx, ty, _CMP_LT_OQ), tx, tz, _CMP_LT_OQ);
            y = before & ~x;
            t = _mm512_min_pd(_mm512_min_pd(tx, ty), tz);
            tx = _mm512_mask_add_pd(tx, x, tx, px);
            ty = _mm512_mask_add_pd(ty, y, ty, py);
            tz = _mm512_mask_add_pd(tz, ~(before|x), tz, pz);
            cell = _mm512_add_epi64(cell, _mm512_mask_mov_epi64(_mm512_mask_mov_epi64(stepz, y, stepy), x, stepx));
        }
        _mm256_storeu_si256((void*)wet, _mm256_cvtepu8_epi32(medium));
        for (int l = 0; l<N; l++) if (inside>>l&1) {
            double at = met[l] && t_at[l]<far[l] ? t_at[l] : far[l], swam = swum[l]+(wet[l] ? at-entered[l] : 0.);
            struct hit hit = { dx[l], dy[l], dz[l], at, swam, surface[l] };
            if (met[l]) {
                hit.x = (cell_at[l]>>32)-ax0; hit.y = cell_at[l]>>16&0xffff; hit.z = (cell_at[l]&0xffff)-az0;
                hit.kind = met[l]; hit.axis = axis_at[l]; hit.row = row[l]; hit.col = col[l];
            }
            hits[(i0+l/ACROSS)*w+j0+l%ACROSS] = hit;
        }
    }
}

int is_supported(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
void cast_rows(void) { }
int is_supported(void) { return 0; }
#endif
